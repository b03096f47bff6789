"""Prepared once a node and kept: a directory named by the digest of what it was made from, whole or not there."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from trainer.files import sync_directory, sync_tree

DONE_FILE = "statistics.json"
_WAIT_S = 5.0


def prepare_once(root: Path, key: str, build: Callable[[Path], None], beat: Callable[[], None]) -> Path:
    """`root/key`, made by `build` unless it is there. Whoever comes second waits, and reads.

    :param build: fills the directory it is given, `DONE_FILE` last
    :param beat: called while waiting
    """
    target = root / key
    if (target / DONE_FILE).exists():
        return target
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / f"{key}.lock", beat):
        if not (target / DONE_FILE).exists():
            _build_atomically(root, target, build)
    return target


def _build_atomically(root: Path, target: Path, build: Callable[[Path], None]) -> None:
    for left in root.glob(f".{target.name}.*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    temporary = root / f".{target.name}.{uuid.uuid4().hex}.tmp"
    temporary.mkdir()
    try:
        build(temporary)
        sync_tree(temporary)
        with contextlib.suppress(FileExistsError, NotADirectoryError):
            temporary.rename(target)
        sync_directory(root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, beat: Callable[[], None]) -> Iterator[None]:
    """One process at a time. On a file system without locks, all go on: the rename decides who was first."""
    lock = FileLock(path, mode=0o666)
    while True:
        try:
            lock.acquire(timeout=_WAIT_S)
            break
        except Timeout:
            beat()
        except (NotImplementedError, OSError):
            if not os.access(path.parent, os.W_OK):
                raise
            break
    try:
        yield
    finally:
        lock.release()
