"""What lies in a data directory and is not data: other places of the config, and what runs have left. Stdlib only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.names import IDENTITY_FILE
from trainer.paths import DATA_KEYS, find_places, is_left

_PREPARED = ("train_dataset", "validation_dataset")


class NotData:
    """:param values: `settings.values`; without any, only links are looked at"""

    def __init__(self, values: Mapping[str, Any]) -> None:
        places = [place for place in find_places(values) if place.key not in DATA_KEYS]
        self._others = {place.real for place in places}
        self._written = {place.real for place in places if place.written}
        self._logs = str(values.get("training_logs_filename"))

    def drop_from(self, files: Iterable[Path], root: Path) -> list[Path]:
        """The files that are data, each once, whatever links lead to it.

        :param root: the directory that the config names, or the part of a pattern before its first wildcard
        """
        real_root = root.resolve()
        kept = {path.resolve(): path for path in reversed(list(files))}
        return sorted(path for real, path in kept.items() if not self._holds(real, real_root))

    def _holds(self, file: Path, root: Path) -> bool:
        if file in self._others:
            return True
        inside = [parent for parent in file.parents if parent.is_relative_to(root)]
        if any(parent in self._others for parent in inside if parent != root):
            return True
        return any(self._is_left(file, directory, root) for directory in inside)

    def _is_left(self, file: Path, directory: Path, root: Path) -> bool:
        is_own = directory in self._written
        if not is_own and not (directory / IDENTITY_FILE).exists():
            return False
        name = file.relative_to(directory).parts[0]
        # The rows that `do_dataprocessing_only` has left are data to another run.
        if not is_own and name in _PREPARED:
            return False
        return directory != root or is_left(name, self._logs)
