"""Files that survive a crash: written under a temporary name, flushed to disk, renamed. Stdlib only."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_BLOCK_BYTES = 1 << 20
# Up to here a file is hashed whole; beyond it, its size and this many blocks spread over it.
_WHOLE_FILE_BYTES = 64 * _BLOCK_BYTES
_SAMPLED_BLOCKS = 64
_FLUSHING_THREADS = 8


def write_atomically(path: Path, text: str) -> None:
    """A reader sees the old content or the new one, never half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def append_line(path: Path, value: dict[str, Any]) -> None:
    """One JSON line, on disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`, or None when there is none to be had."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def sync_tree(directory: Path) -> None:
    """Flush every file below `directory`, then the directories, to disk.

    Files become readable as this process's umask says: safetensors writes them with mode 0600, and the model is for
    another user to serve.
    """
    mode = 0o666 & ~_umask()

    def sync(path: Path) -> None:
        path.chmod(mode)
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
        if sha256_file(directory / name) != facts["sha256"]:
            yield f"{name} is damaged (its digest differs)"


def find_missing(directory: Path, described: object) -> Iterator[str]:
    """As `find_damage`, by names and sizes alone; nothing is read."""
    if not isinstance(described, dict) or not described:
        yield "its manifest names no file"
        return
    for name, facts in described.items():
        path = directory / name
        if not isinstance(facts, dict) or not {"size_bytes", "sha256"} <= facts.keys():
            yield f"its manifest does not describe {name}"
        elif not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != facts["size_bytes"]:
            yield f"{name} has {path.stat().st_size} bytes, {facts['size_bytes']} were written"


def sync_directory(directory: Path) -> None:
    _sync(directory, os.O_RDONLY | os.O_DIRECTORY)


def prove_writable(directory: Path) -> None:
    """Write a block to `directory` and flush it.

    :raises OSError: with the reason why that is not possible
    """
    path = directory / f".probe.{os.getpid()}"
    try:
        with path.open("wb") as file:
            file.write(bytes(_BLOCK_BYTES))
            file.flush()
            os.fsync(file.fileno())
    finally:
        path.unlink(missing_ok=True)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """Read from /proc: setting it to read it would change it for other threads."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_file(path: Path) -> str:
    """The content's digest, sampled for a file over 64 MiB: 64 blocks of 1 MiB spread over it, and its size."""
    size_bytes = path.stat().st_size
    if size_bytes <= _WHOLE_FILE_BYTES:
        return sha256_file(path)
    digest = hashlib.sha256(str(size_bytes).encode())
    with path.open("rb") as file:
        for index in range(_SAMPLED_BLOCKS):
            file.seek((size_bytes - _BLOCK_BYTES) * index // (_SAMPLED_BLOCKS - 1))
            digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def digest_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
