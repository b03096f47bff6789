"""The directory where a parent and its ranks talk, and what becomes of it when the parent is killed. Stdlib only."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "sft-run-"
_OPEN_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@contextlib.contextmanager
def private_scratch() -> Iterator[Path]:
    """A new directory for this process alone, gone afterwards; what killed processes of this user left goes before.

    A file lock on the directory says that its process lives: it ends with the process, however that ends, and holds
    between containers, which do not see each other's process ids.
    """
    clear_scratch_of_the_dead(Path(tempfile.gettempdir()))
    # It gets the name that others look for once it is locked.
    unlocked = Path(tempfile.mkdtemp(prefix="sft-new-"))
    descriptor = os.open(unlocked, _OPEN_FLAGS)
    _lock(descriptor)
    scratch = unlocked.rename(unlocked.with_name(_PREFIX + unlocked.name.removeprefix("sft-new-")))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(descriptor)


def clear_scratch_of_the_dead(directory: Path) -> None:
    """Remove the scratch directories below `directory` that are this user's and nobody's any more."""
    for path in directory.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # no directory, a link, another user's, or just gone
            descriptor = os.open(path, _OPEN_FLAGS)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid() and _lock(descriptor):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """False where a living process holds it, and on a file system that has no locks: there nobody can tell."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
