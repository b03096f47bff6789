"""Damaged records of earlier attempts: set aside before an attempt writes to them. Stdlib only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from airflow_provider_sft.contract.names import ATTEMPTS_FILE, PROGRESS_FILE, RESULT_FILE
from trainer.files import sync_directory, write_atomically
from trainer.progress import HISTORY_FILE, HISTORY_SHAPE, PROGRESS_SHAPE
from trainer.records import Shape, count_damaged_lines, read_lines, read_record
from trainer.run_dir import ATTEMPT_SHAPE, SAMPLES_FILE, SAMPLES_SHAPE, STATISTICS_FILE
from trainer.trained import TRAINED_FILE, TRAINED_SHAPE

_OBJECTS: dict[str, Shape] = {
    PROGRESS_FILE: PROGRESS_SHAPE,
    RESULT_FILE: {},
    SAMPLES_FILE: SAMPLES_SHAPE,
    STATISTICS_FILE: {},
    TRAINED_FILE: TRAINED_SHAPE,
}
_LINES: dict[str, Shape] = {ATTEMPTS_FILE: ATTEMPT_SHAPE, HISTORY_FILE: HISTORY_SHAPE}


def set_damaged_aside(output_dir: Path, say: Callable[[str], None]) -> None:
    """Rename each record that cannot be read to `<name>.damaged`; of a file of lines, those that can be read stay.

    :param say: gets one sentence for each
    """
    damaged = list(_find_damaged(output_dir))
    for path in damaged:
        kept = _free(path.with_name(f"{path.name}.damaged"))
        lines = read_lines(path, _LINES[path.name]) if path.name in _LINES else []
        path.rename(kept)
        if lines:
            write_atomically(path, "".join(f"{json.dumps(line)}\n" for line in lines))
        say(
            f"{path} could not be read and was set aside as {kept.name}; the run goes on without what it said."
        )
    if damaged:
        sync_directory(output_dir)


def _find_damaged(output_dir: Path) -> Iterator[Path]:
    for name, shape in _OBJECTS.items():
        path = output_dir / name
        if path.exists() and read_record(path, shape) is None:
            yield path
    for name, shape in _LINES.items():
        path = output_dir / name
        if path.exists() and (not path.is_file() or count_damaged_lines(path, shape)):
            yield path


def _free(path: Path) -> Path:
    return path if not path.is_dir() else _free(path.with_name(f"{path.name}.again"))
