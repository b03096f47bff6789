"""Files that survive a crash: written under a temporary name, flushed to disk, renamed. Stdlib only."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_BLOCK_BYTES = 1 << 20
_FLUSHING_THREADS = 8
_MAX_RECORD_BYTES = 256 * _BLOCK_BYTES
# What a file system says of a call that it does not have.
_NOT_OFFERED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ENOTTY, errno.EPERM})
_limits: dict[str, None] = {}
_umask_lock = threading.Lock()


def write_atomically(path: Path, text: str) -> None:
    """A reader sees the old content or the new one, never half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(temporary), temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        _flush(file.fileno(), temporary)
    temporary.replace(path)
    sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def append_line(path: Path, value: dict[str, Any]) -> None:
    """One JSON line, on disk when this returns; a line that was torn off before it stays one of its own."""
    line = json.dumps(value, ensure_ascii=False).encode() + b"\n"
    with naming(path), path.open("a+b") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
        torn = file.read(1) not in (b"\n", b"")
        file.write(b"\n" + line if torn else line)
        file.flush()
        _flush(file.fileno(), path)


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`, or None when there is none, whatever lies there."""
    text = read_record_bytes(path)
    return None if text is None else parse_object(text)


def read_record_bytes(path: Path) -> bytes | None:
    """What is in `path`; None for what is not a file, cannot be read, or is far too long for a record."""
    try:
        if not path.is_file() or path.stat().st_size > _MAX_RECORD_BYTES:  # a FIFO would be waited for
            return None
        return path.read_bytes()
    except (OSError, ValueError, MemoryError):
        return None


def parse_object(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError, MemoryError):
        return None
    return value if isinstance(value, dict) else None


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Python names the file of a failed `open`, but not that of a failed write or flush.

    :raises OSError: with its `filename`
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def volume_limits() -> list[str]:
    """What a volume turned out not to offer since this process began, a sentence each."""
    return list(_limits)


def _note_limit(path: Path, lacks: str, so: str) -> None:
    sentence = f"The volume of {path} {lacks}: {so}."
    # Of each volume one sentence, whichever of its directories shows it.
    if not any(lacks in known for known in _limits):
        _limits[sentence] = None
        logging.getLogger("trainer").warning("%s", sentence)


def sync_tree(directory: Path) -> None:
    """Flush every file below `directory`, then the directories, to disk.

    Files become readable as this process's umask says: safetensors writes them with mode 0600, and the model is for
    another user to serve.
    """
    mode = 0o666 & ~_umask()

    def sync(path: Path) -> None:
        make_readable(path, mode)
        _sync(path, os.O_RDONLY)

    found = sorted(directory.rglob("*"))
    with ThreadPoolExecutor(_FLUSHING_THREADS) as pool:  # one journal commit serves many
        list(pool.map(sync, (path for path in found if path.is_file())))
    for path in (*reversed([path for path in found if path.is_dir()]), directory):
        sync_directory(path)


def sync_and_describe(directory: Path) -> dict[str, dict[str, Any]]:
    """Flush every file below `directory` to disk; its `size_bytes` and `sha256` by its relative name."""
    paths = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    with ThreadPoolExecutor() as beside:  # hashing takes cores, flushing the disk
        described = beside.map(describe_file, paths)
        sync_tree(directory)
        return {str(path.relative_to(directory)): facts for path, facts in zip(paths, described, strict=True)}


def describe_file(path: Path) -> dict[str, Any]:
    return {"size_bytes": path.stat().st_size, "sha256": sha256_file(path)}


def find_damage(directory: Path, described: object) -> Iterator[str]:
    """What is no longer as `sync_and_describe` saw it, a clause each."""
    yield from find_missing(directory, described)
    for name, facts in described.items() if isinstance(described, dict) else ():
        if (path := directory / name).is_file() and sha256_file(path) != _facts(facts).get("sha256"):
            yield f"{name} is damaged (its digest differs)"


def find_missing(directory: Path, described: object) -> Iterator[str]:
    """As `find_damage`, by names and sizes alone; nothing is read."""
    if not isinstance(described, dict) or not described:
        yield "its manifest names no file"
        return
    for name, facts in described.items():
        path = directory / name
        if not {"size_bytes", "sha256"} <= _facts(facts).keys():
            yield f"its manifest does not describe {name}"
        elif not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != facts["size_bytes"]:
            yield f"{name} has {path.stat().st_size} bytes, {facts['size_bytes']} were written"


def _facts(found: object) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def sync_directory(directory: Path) -> None:
    _sync(directory, os.O_RDONLY | os.O_DIRECTORY)


def prove_writable(directory: Path) -> None:
    """Write a block to `directory` and flush it.

    :raises OSError: with the reason why that is not possible
    """
    path = directory / f".probe.{os.getpid()}"
    try:
        with naming(path), path.open("wb") as file:
            file.write(bytes(_BLOCK_BYTES))
            file.flush()
            _flush(file.fileno(), path)
    finally:
        path.unlink(missing_ok=True)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        _flush(descriptor, path)
    finally:
        os.close(descriptor)


def _flush(descriptor: int, path: Path) -> None:
    """:raises OSError: with its `filename`; not where the volume (CIFS, some FUSE) cannot flush a directory"""
    try:
        with naming(path):
            os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise
        kind = "directories" if path.is_dir() else "files"
        _note_limit(
            path, f"cannot flush {kind} to disk", "a power loss may undo what was just renamed or written"
        )


def make_readable(path: Path, mode: int) -> None:
    """:raises OSError: not where the volume has no permissions of its own"""
    try:
        path.chmod(mode)
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise
        _note_limit(
            path.parent, "does not let permissions be changed", "its files keep those that it gives them"
        )


def _umask() -> int:
    """Read from /proc where it can be: setting it to read it changes it for other threads."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    with _umask_lock:
        mask = os.umask(0o077)
        os.umask(mask)
    return mask


def sha256_file(path: Path) -> str:
    with naming(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
