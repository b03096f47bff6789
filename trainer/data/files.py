"""Which files a run reads: found, allowed, readable, and their digest. No torch: the parent asks before any rank.

Says nothing of what is in them: that is `rows`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.errors import AccessDeniedError, ConfigError, DataError, NotFoundError
from trainer.data.data_config import read_data_config
from trainer.data.not_data import NotData
from trainer.data.patterns import expand_pattern, fixed_part
from trainer.data.plan import DataPlan, plan_paths
from trainer.data.roots import check_allowed
from trainer.digests import Digests, changed
from trainer.files import digest_json

KINDS = {
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".txt": "text",
    ".md": "text",
}
# In a directory the first kind here that occurs is the data: a notes.md beside train.jsonl is not.
_KIND_ORDER = ("json", "parquet", "arrow", "csv", "text")
# What `datasets` and the Hub leave beside the data.
_NOT_DATA = frozenset(
    {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "README.md"}
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_TRAIN_SPLIT = re.compile(r"(?:^|[._-])train(?:$|[._-]|\d)")
_OTHER_SPLIT = re.compile(r"(?:^|[._-])(?:test|validation|valid|val|dev|eval)(?:$|[._-]|\d)")


@dataclass(frozen=True)
class DataSource:
    """One data set: local files in the order they are read, or a data set on the Hub.

    :param key: the config key that names it
    :param kind: of all its files, where the suffix does not say
    """

    key: str
    files: tuple[Path, ...] = ()
    hub_id: str | None = None
    kind: str | None = None
    digests: Digests = field(default_factory=Digests, compare=False, repr=False)

    @cached_property
    def sha256(self) -> str:
        """Of the content: the same bytes under another name are the same data."""
        return digest_json([self.hub_id, *self.digests.of(self.files)])

    def __str__(self) -> str:
        if self.hub_id:
            return self.hub_id
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"{self.files[0]}{more}"


@dataclass(frozen=True)
class LocatedData:
    """The plan, and where each of its data sets is, in its order."""

    plan: DataPlan
    sources: tuple[DataSource, ...]

    def refuse_changed(self, digests: Digests) -> None:
        """:raises NotFoundError: a file is not what it was when `digests` were made, or was not there"""
        for file in (file for source in self.sources for file in source.files):
            if file not in digests:
                raise changed(file)
            digests.refuse_changed(file)


def locate_data(
    values: Mapping[str, Any], environ: Mapping[str, str], digests: Digests | None = None
) -> LocatedData:
    """Everything the config names as data, found and allowed.

    :param values: `settings.values`
    :param digests: gives the files' digests, and keeps them
    :raises ConfigError: no data, or keys that contradict each other
    :raises NotFoundError, DataError, AccessDeniedError: as `locate_files`
    """
    plan, not_data = _read_plan(values, environ), NotData(values)
    sources = (
        locate_files(spec.key, spec.data_paths, environ, not_data, kind=spec.builder)
        for spec in plan.datasets
    )
    kept = Digests() if digests is None else digests
    return LocatedData(plan, tuple(replace(source, digests=kept) for source in sources))


def digest_data(located: LocatedData) -> str:
    """What the rows are made from: files by content, a Hub data set by name, and how they are mixed."""
    return digest_json([located.plan.as_json(), *(source.sha256 for source in located.sources)])


def locate_files(
    key: str,
    paths: Sequence[str],
    environ: Mapping[str, str],
    not_data: NotData | None = None,
    *,
    kind: str | None = None,
) -> DataSource:
    """Find what `paths` (files, directories, globs, or one Hub id) name.

    :param key: the config key the paths came from, for sentences
    :param not_data: leaves out of directories and patterns what is not data
    :param kind: of the files, where their suffix does not say
    :raises ConfigError: a URL, or a Hub id among files
    :raises NotFoundError: nothing there
    :raises DataError: something there that is no data
    :raises AccessDeniedError: outside SFT_ALLOWED_ROOTS, or not readable
    """
    hub_ids = [path for path in paths if _is_hub_id(path)]
    if hub_ids and len(paths) > 1:
        raise ConfigError(
            f"{key} names {hub_ids[0]!r}, which is no file here, beside other paths. A Hub data set needs an "
            "entry of its own in datasets; if it is a file, check that the volume is mounted."
        )
    if hub_ids:
        return DataSource(key, hub_id=hub_ids[0])
    found = [file for path in paths for file in _expand(key, path, not_data or NotData({}))]
    for file in found:
        _check_file(key, file, environ, kind)
    return DataSource(key, files=tuple(found), kind=kind)


def _read_plan(values: Mapping[str, Any], environ: Mapping[str, str]) -> DataPlan:
    config_path = values.get("data_config_path")
    if not config_path:
        return plan_paths(values)
    for key in ("training_data_path", "validation_data_path"):
        if values.get(key):
            raise ConfigError(
                f"data_config_path and {key} are both set. Name all data in {config_path}, or drop it."
            )
    check_allowed("data_config_path", Path(config_path), environ)
    return read_data_config(Path(config_path), values, environ)


def _is_hub_id(path: str) -> bool:
    return not Path(path).exists() and Path(path).suffix not in KINDS and bool(_HUB_ID.fullmatch(path))


def _expand(key: str, path: str, not_data: NotData) -> list[Path]:
    if "://" in path:
        raise ConfigError(f"{key} is {path!r}, a URL. Download it to a volume and give its path.")
    local = Path(path)
    if local.is_dir():
        return _data_files_of(key, local, not_data)
    if local.exists():
        return [local]
    matches = sorted(map(Path, expand_pattern(path)))
    if not matches:
        raise NotFoundError(
            f"{key} is {path!r}, and nothing is there. Check that the volume is mounted and the path spelled "
            "right."
        )
    files = not_data.drop_from((match for match in matches if not match.is_dir()), fixed_part(path))
    inside = [file for match in matches if match.is_dir() for file in _data_files_of(key, match, not_data)]
    if not (found := list(dict.fromkeys([*files, *inside]))):
        raise NotFoundError(
            f"{key} is {path!r}, and only files that runs have left are there. Name the data."
        )
    return found


def _data_files_of(key: str, directory: Path, not_data: NotData) -> list[Path]:
    found = [
        path
        for path in sorted(directory.rglob("*"))
        if path.suffix in KINDS
        and path.name not in _NOT_DATA
        and path.is_file()
        and not _hidden(path, directory)
    ]
    if not (files := not_data.drop_from(found, directory)):
        raise DataError(
            f"{directory} ({key}) is a directory without a data file. Put {', '.join(KINDS)} files in it, or "
            "name another."
        )
    kind = min((KINDS[path.suffix] for path in files), key=_KIND_ORDER.index)
    return _train_files([path for path in files if KINDS[path.suffix] == kind], directory)


def _train_files(files: list[Path], directory: Path) -> list[Path]:
    """The files of the train split where their names say splits, as the Hub's layout does; else all."""
    parts = {path: path.relative_to(directory).with_suffix("").as_posix().replace("/", ".") for path in files}
    train = [path for path in files if _TRAIN_SPLIT.search(parts[path])]
    return train if any(_OTHER_SPLIT.search(parts[path]) for path in files) and train else files


def _hidden(path: Path, directory: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.relative_to(directory).parts)


def _check_file(key: str, path: Path, environ: Mapping[str, str], kind: str | None) -> None:
    if path.suffix not in KINDS and kind is None:
        raise DataError(
            f"{path} ({key}) ends in {path.suffix!r}. Expected one of {', '.join(KINDS)}: convert it, or rename "
            "it if it is one."
        )
    check_allowed(key, path, environ)
    if not os.access(path, os.R_OK):
        raise AccessDeniedError(
            f"{path} ({key}) cannot be read by user {os.getuid()}. Give that user or its group the right to read "
            "it."
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path} ({key}) is empty. Expected at least one row.")
