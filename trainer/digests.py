"""Digests of whole files, read in blocks by several threads, and kept so that an unchanged file is read once. Stdlib only.

A file counts as unchanged while its device, inode, size, mtime and ctime are what they were.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from airflow_provider_sft.contract.errors import NotFoundError
from trainer.files import read_json, write_json

DIGESTS_FILE = ".sft.digests.json"
_READ_BYTES = 1 << 20
# A file over this is the digest of its blocks' digests, which threads make side by side.
_BLOCK_BYTES = 64 * _READ_BYTES
_THREADS = min(8, os.cpu_count() or 1)
_WORTH_SAYING_S = 10.0
# A file that was written to just now may be written to again within the same tick of the file system's clock.
_SETTLED_S = 2.0

log = logging.getLogger("trainer")

Signature = list[int]


class Digests:
    """
    :param known: path → signature and digest, as `as_json` gives them
    :param heartbeat: called between blocks; it may raise
    """

    def __init__(
        self, known: Mapping[str, Any] | None = None, heartbeat: Callable[[], None] = lambda: None
    ) -> None:
        self._known = {path: entry for path, entry in (known or {}).items() if _is_entry(entry)}
        self._used: dict[str, dict[str, Any]] = {}
        self._heartbeat = heartbeat

    @classmethod
    def read(cls, output_dir: Path, heartbeat: Callable[[], None]) -> Self:
        """Those that an earlier attempt has kept in `output_dir`."""
        return cls(read_json(output_dir / DIGESTS_FILE), heartbeat)

    def write(self, output_dir: Path) -> None:
        now = time.time()
        settled = {path: entry for path, entry in self._used.items() if _age_s(entry, now) > _SETTLED_S}
        write_json(output_dir / DIGESTS_FILE, settled)

    def as_json(self) -> dict[str, Any]:
        """Of the files that were asked for, for the ranks."""
        return self._used

    def of(self, paths: Iterable[Path]) -> list[str]:
        """:raises NotFoundError: a file changed while it was read, or is gone"""
        began = time.monotonic()
        wanted = list(paths)
        signatures = {str(path.absolute()): read_signature(path) for path in wanted}
        unread = [name for name, signature in signatures.items() if not self._is_known(name, signature)]
        digests = _digest_files({name: signatures[name][2] for name in unread}, self._heartbeat)
        for name, digest in digests.items():
            if read_signature(Path(name)) != signatures[name]:
                raise changed(Path(name))
            self._known[name] = {"signature": signatures[name], "sha256": digest}
        if (took_s := time.monotonic() - began) > _WORTH_SAYING_S:
            log.info(
                "Read %d files for their digests in %.0f s; a retry reads only what changed.",
                len(unread),
                took_s,
            )
        self._used |= {name: self._known[name] for name in signatures}
        return [self._known[str(path.absolute())]["sha256"] for path in wanted]

    def refuse_changed(self, path: Path) -> None:
        """One look at the file's entry; its content is read only where that differs. Unknown files pass.

        :raises NotFoundError: the content is not what was digested
        """
        name = str(path.absolute())
        if name not in self._known or self._is_known(name, signature := read_signature(path)):
            return
        digest = self._known[name]["sha256"]
        if _digest_files({name: signature[2]}, self._heartbeat)[name] != digest:
            raise changed(path)
        self._known[name] = {"signature": signature, "sha256": digest}

    def refuse_any_changed(self) -> None:
        for name in list(self._known):
            self.refuse_changed(Path(name))

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, path: Path) -> bool:
        return str(path.absolute()) in self._known

    def _is_known(self, name: str, signature: Signature) -> bool:
        return name in self._known and self._known[name]["signature"] == signature


def changed(path: Path) -> NotFoundError:
    return NotFoundError(
        f"{path} has changed since this attempt began, so the run would train on something else than it records. "
        "Start it again when nothing writes to that file."
    )


def read_signature(path: Path) -> Signature:
    """:raises NotFoundError: the file is gone"""
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} is gone. Put it back, and start the run again.") from error
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _digest_files(sizes_bytes: Mapping[str, int], heartbeat: Callable[[], None]) -> dict[str, str]:
    """Of a file of one block its SHA-256; of a larger one that of its size and its blocks' SHA-256."""
    blocks = [
        (name, start) for name, size in sizes_bytes.items() for start in range(0, max(size, 1), _BLOCK_BYTES)
    ]
    found: dict[str, list[bytes]] = {name: [] for name in sizes_bytes}
    pool = ThreadPoolExecutor(_THREADS)
    try:
        for (name, _), digest in zip(blocks, pool.map(_digest_block, blocks), strict=True):
            heartbeat()
            found[name].append(digest)
    finally:
        pool.shutdown(cancel_futures=True)
    return {name: _join(sizes_bytes[name], digests) for name, digests in found.items()}


def _digest_block(block: tuple[str, int]) -> bytes:
    name, start = block
    digest, left = hashlib.sha256(), _BLOCK_BYTES
    with Path(name).open("rb", buffering=0) as file:
        file.seek(start)
        while left and (read := file.read(min(left, _READ_BYTES))):
            digest.update(read)
            left -= len(read)
    return digest.digest()


def _join(size_bytes: int, digests: list[bytes]) -> str:
    if len(digests) == 1:
        return digests[0].hex()
    return hashlib.sha256(str(size_bytes).encode() + b"".join(digests)).hexdigest()


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and entry.keys() == {"signature", "sha256"}


def _age_s(entry: Mapping[str, Any], now: float) -> float:
    return now - max(entry["signature"][3:]) / 1e9
