"""Files and directories put in their place so that whoever looks, also after SIGKILL, finds the old set or the new.

An adapter is several files, and no system call renames several. So the visible files become symbolic links into
`.export/current`, file by file while their content stays the old; then one rename turns `current` from `old` to
`new`, which switches them all at once; then the links become files again, each with the content it already showed.
A process killed in between leaves a set that loads, and the next start finishes the move or takes it back.
Where the volume has no symbolic links, adapter_config.json goes first and comes last: until the next start a
reader may find no adapter, but never half of one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from airflow_provider_sft.contract.adapter_files import ADAPTER_CONFIG_FILE
from airflow_provider_sft.contract.errors import LockedError
from trainer.export.tensor_writer import copy_file
from trainer.files import sync_directory, sync_tree

STAGE = ".export"

_NEW, _OLD, _CURRENT, _READY = "new", "old", "current", "ready"
_NO_LINKS = (
    errno.EPERM,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EMLINK,
    errno.EXDEV,
    errno.EACCES,
    errno.EINVAL,
)
_ASIDE = ".aside"
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """One export at a time in a directory; what a killed one left is finished or taken back first.

    :raises LockedError: another process exports here
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(descriptor, directory)
        recover(directory)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LockedError(f"Another export runs in {directory}. Wait for it to end.") from error
    except OSError as error:  # a volume without locks
        if error.errno not in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK):
            raise


@contextmanager
def staging(directory: Path) -> Iterator[Path]:
    """An empty directory for the new files, on the same volume; it is gone when the block ends, however it ends."""
    stage = directory / STAGE
    (stage / _NEW).mkdir(parents=True)
    try:
        yield stage / _NEW
    finally:
        recover(directory)


def switch_files(directory: Path) -> None:
    """Put every file of `.export/new`, each flushed when it was written, into `directory`, all at once."""
    stage = directory / STAGE
    names = sorted(path.name for path in (stage / _NEW).iterdir())
    sync_directory(stage / _NEW)
    if not (directory / ADAPTER_CONFIG_FILE).exists():
        _move_in(directory)
        return
    if not _keep_old(directory, names):
        _switch_without_links(directory, names)
        return
    for name in names:
        _replace_by_link(directory, name)
    sync_directory(directory)
    _point_current(stage, _NEW)
    sync_directory(stage)
    _settle(directory, _NEW)


def recover(directory: Path) -> None:
    """Finish, or take back, what a killed export left. Without one it does nothing."""
    stage = directory / STAGE
    if not stage.is_dir():
        return
    if (stage / _READY).exists():
        _finish_without_links(directory)
    elif (stage / _CURRENT).is_symlink():
        _settle(directory, (stage / _CURRENT).readlink().name)
    _finish_exchanges(directory)
    shutil.rmtree(stage)


def publish_directory(staged: Path, target: Path) -> None:
    """Put a finished directory in the place of `target`, whether that exists or not."""
    sync_tree(staged)
    if target.is_dir():
        _exchange(staged, target)
    else:
        staged.rename(target)
    sync_directory(target.parent)


def _keep_old(directory: Path, names: list[str]) -> bool:
    """Hard links (or copies) of the files as they are, and `current` pointing at them. False: no links here."""
    stage = directory / STAGE
    (stage / _OLD).mkdir()
    for name in names:
        if (directory / name).exists():
            _link_or_copy(directory / name, stage / _OLD / name)
    try:
        _point_current(stage, _OLD)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    sync_directory(stage / _OLD)
    return True


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        copy_file(source, target)


def _point_current(stage: Path, to: str) -> None:
    temporary = stage / "link"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(to)
    temporary.replace(stage / _CURRENT)


def _replace_by_link(directory: Path, name: str) -> None:
    temporary = directory / STAGE / "link"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(f"{STAGE}/{_CURRENT}/{name}")
    temporary.replace(directory / name)


def _settle(directory: Path, chosen: str) -> None:
    """Turn the links into files with the content they show. A link to nothing was a file that is not there yet."""
    stage = directory / STAGE
    for path in sorted(directory.iterdir()):
        if not path.is_symlink() or path.readlink().parts[:2] != (STAGE, _CURRENT):
            continue
        kept = stage / chosen / path.name
        if kept.exists():
            temporary = stage / "file"
            temporary.unlink(missing_ok=True)
            _link_or_copy(kept, temporary)
            temporary.replace(path)
        else:
            path.unlink()
    sync_directory(directory)


def _switch_without_links(directory: Path, names: list[str]) -> None:
    stage = directory / STAGE
    (stage / _READY).touch()
    sync_directory(stage)
    if ADAPTER_CONFIG_FILE in names:
        (directory / ADAPTER_CONFIG_FILE).replace(stage / _OLD / ADAPTER_CONFIG_FILE)
        sync_directory(directory)
    _finish_without_links(directory)


def _finish_without_links(directory: Path) -> None:
    _move_in(directory)
    (directory / STAGE / _READY).unlink()


def _move_in(directory: Path) -> None:
    """The config last: without it there is no adapter."""
    new = directory / STAGE / _NEW
    for path in sorted(new.iterdir(), key=lambda path: path.name == ADAPTER_CONFIG_FILE):
        path.replace(directory / path.name)
    sync_directory(directory)


def _finish_exchanges(directory: Path) -> None:
    """A directory that was moved aside, and whose successor had not yet come, gets its successor."""
    stage = directory / STAGE
    for aside in stage.glob(f"*{_ASIDE}"):
        name = aside.name.removesuffix(_ASIDE)
        if not (directory / name).exists() and (stage / name).exists():
            (stage / name).rename(directory / name)


def _exchange(staged: Path, target: Path) -> None:
    """Swap two directories in one step where the kernel and the volume can, in two where they cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    with suppress(AttributeError):  # a libc without renameat2
        encoded = (os.fsencode(staged), os.fsencode(target))
        if libc.renameat2(_AT_FDCWD, encoded[0], _AT_FDCWD, encoded[1], _RENAME_EXCHANGE) == 0:
            return
    aside = staged.with_name(f"{staged.name}{_ASIDE}")
    target.rename(aside)
    staged.rename(target)
