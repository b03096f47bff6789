"""Every path of a config, resolved before anything is loaded: allowed, writable, and in nobody's way. Stdlib only."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.errors import AccessDeniedError, ConfigError, SFTError, StorageFullError
from airflow_provider_sft.contract.names import IDENTITY_FILE, LEFT_BY_A_RUN
from airflow_provider_sft.contract.paths import NamedPath, named_paths
from trainer.data.roots import check_allowed

_PROBE_BYTES = 4_096
DATA_KEYS = ("training_data_path", "validation_data_path")
# An image keeps Hub downloads there; several runs share it.
_SHARED = ("cache_dir", "model_init_kwargs.cache_dir")


@dataclass(frozen=True)
class Place:
    """
    :param path: as the config has it
    :param real: absolute, symlinks resolved
    """

    key: str
    path: Path
    real: Path
    written: bool


def find_places(values: Mapping[str, Any]) -> list[Place]:
    """What `values` names on this disk: not a Hub id, not a glob.

    :param values: `settings.values`
    """
    places = [_place(named) for named in named_paths(values) if _is_local(named)]
    options = values.get("model_init_kwargs") or {}
    if (folder := options.get("subfolder")) and (model := _of(places, "model_name_or_path")):
        path = model.path / str(folder)
        places.append(Place("model_init_kwargs.subfolder", path, path.resolve(), written=False))
    return places


def check_places(values: Mapping[str, Any], environ: Mapping[str, str]) -> None:
    """
    :raises ConfigError: the run would write over what it reads, or into another run's directory
    :raises AccessDeniedError: outside SFT_ALLOWED_ROOTS
    """
    places, logs = find_places(values), str(values.get("training_logs_filename"))
    for place in places:
        check_allowed(place.key, place.path, environ)
        for link in _links_in(place):
            check_allowed(place.key, link, environ)
    for place in places:
        if place.written:
            _check_written(place, places, logs)


def check_inputs_stay(values: Mapping[str, Any], data_files: Iterable[Path]) -> None:
    """
    :param data_files: the local files that the run trains on
    :raises ConfigError: the run would replace one of them
    """
    written = [place for place in find_places(values) if place.written]
    for file in data_files:
        for place in written:
            if _replaces(place.real, file.resolve(), str(values.get("training_logs_filename"))):
                raise ConfigError(
                    f"The data file {str(file)!r} lies in {place.key} {str(place.path)!r} under a name that the run "
                    f"writes. Move it, or give the run another {place.key}."
                )


def prove_places(values: Mapping[str, Any]) -> None:
    """Write to every directory that the run will write to, before the model loads.

    :raises SFTError: as `prepare_directory`
    """
    for place in find_places(values):
        # A tracker's database is a file, and what an object names with a suffix may be one.
        is_file = place.path.suffix == ".db" or ("." in place.key and place.path.suffix)
        if place.written and not is_file:
            prepare_directory(place.key, place.path)


def prepare_directory(key: str, path: Path) -> None:
    """Create the directory and prove that files can be written, flushed and renamed in it.

    :raises ConfigError: a file, or below one
    :raises AccessDeniedError: read-only, or not this user's
    :raises StorageFullError: no room for even a block
    """
    probe = path / f".sft.probe-{uuid.uuid4().hex}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        with probe.open("wb") as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
        probe.rename(probe.with_suffix(".renamed"))
    except NotADirectoryError as error:
        raise ConfigError(f"{key} {str(path)!r} lies below a file. Name a directory.") from error
    except FileExistsError as error:
        raise ConfigError(f"{key} {str(path)!r} is a file. Name a directory.") from error
    except OSError as error:
        raise _unwritable(key, path, error) from error
    finally:
        for left in (probe, probe.with_suffix(".renamed")):
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)


def _unwritable(key: str, path: Path, error: OSError) -> SFTError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFullError(f"{key} {str(path)!r} is full ({error.strerror}).")
    return AccessDeniedError(
        f"{key} {str(path)!r} cannot be written by user {os.getuid()} ({error.strerror}). "
        f"Mount it writable for that user or its group."
    )


def _place(named: NamedPath) -> Place:
    path = Path(named.text)
    return Place(named.key, path, path.resolve(), named.written)


def _is_local(named: NamedPath) -> bool:
    return (
        named.may_be != "hub" or named.text.startswith(("/", "./", "../", "~")) or Path(named.text).exists()
    )


def _of(places: list[Place], key: str) -> Place | None:
    return next((place for place in places if place.key == key), None)


def _links_in(place: Place) -> Iterator[Path]:
    """Files of a model may be links, as in the Hub's cache."""
    if not place.written and place.key not in DATA_KEYS and place.path.is_dir():
        yield from (path for path in place.path.iterdir() if path.is_symlink())


def _check_written(place: Place, places: list[Place], logs: str) -> None:
    if place.real == Path("/"):
        raise ConfigError(
            f"{place.key} {str(place.path)!r} is the root directory. Name a directory of its own."
        )
    for other in places:
        if other.key in ("model_name_or_path", "tokenizer_name_or_path") and _holds(other.real, place.real):
            raise ConfigError(
                f"{place.key} {str(place.path)!r} lies in {other.key} {str(other.path)!r}, which would be written "
                f"over. Name another directory."
            )
        is_input = not other.written and other.key != "resume_from_checkpoint"
        if is_input and _replaces(place.real, other.real, logs):
            raise ConfigError(
                f"{other.key} {str(other.path)!r} lies in {place.key} {str(place.path)!r} under a name that the run "
                f"writes. Move it, or give the run another {place.key}."
            )
    _check_owner(place, _of(places, "output_dir"))


def _check_owner(place: Place, output_dir: Place | None) -> None:
    own = output_dir.real if output_dir else None
    if place.key == "output_dir" or place.key in _SHARED:
        return
    for directory in (place.real, *place.real.parents):
        is_run = directory == own or (directory / IDENTITY_FILE).exists()
        inside = place.real.relative_to(directory).parts
        if is_run and inside and is_left(inside[0]):
            raise ConfigError(
                f"{place.key} {str(place.path)!r} lies in {directory}, a run's output_dir, under a name that the "
                f"run writes. Name another directory."
            )
        if is_run and not inside and directory != own:
            raise ConfigError(
                f"{place.key} {str(place.path)!r} is the output_dir of another run, whose files would be replaced. "
                f"Name another directory."
            )


def _replaces(directory: Path, file: Path, logs: str = "") -> bool:
    """A run that writes to `directory` writes over `file`, or removes it."""
    inside = _path_within(directory, file) or ()
    return bool(inside) and is_left(inside[0], logs)


def is_left(name: str, logs: str = "") -> bool:
    """A run writes files of this name; `logs` is its training_logs_filename."""
    return name == logs or any(fnmatchcase(name, pattern) for pattern in LEFT_BY_A_RUN)


def _holds(directory: Path, path: Path) -> bool:
    """Also through a bind mount, which no name shows."""
    return _path_within(directory, path) is not None


def _path_within(directory: Path, path: Path) -> tuple[str, ...] | None:
    for parent in (path, *path.parents):
        if parent == directory or _is_same(parent, directory):
            return path.relative_to(parent).parts
    return None


def _is_same(left: Path, right: Path) -> bool:
    try:
        return left.samefile(right)
    except OSError:
        return False
