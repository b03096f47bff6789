"""What `output_dir` says about the run it belongs to: whose it is, how often it was tried, whether it is done.

Stdlib only: this decides, before anything heavy is imported, whether there is anything to do.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.errors import ConfigError
from airflow_provider_sft.contract.names import (
    ATTEMPTS_FILE,
    COMPLETE_FILE,
    IDENTITY_FILE,
    LEFT_BY_A_RUN,
    PROGRESS_FILE,
    RESULT_FILE,
)
from airflow_provider_sft.contract.outcome import Result
from airflow_provider_sft.contract.plain_text import plain_value
from trainer.files import append_line, read_json, sync_directory, write_json
from trainer.outcome import read_success
from trainer.paths import prepare_directory
from trainer.progress import HISTORY_FILE
from trainer.records import NUMBER, Shape, is_number, read_lines, read_record

SAMPLES_FILE = ".sft.samples.json"
STATISTICS_FILE = ".sft.statistics.json"
PREPARED_DIR = ".sft.prepared"
SUPERSEDED_DIR = ".superseded"
ATTEMPT_SHAPE: Shape = {"attempt": int, "event": str, "time": NUMBER}
SAMPLES_SHAPE: Shape = {"samples": list}


class RunDir:
    """The output_dir of one run. Nothing is changed before `claim`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self) -> None:
        """:raises SFTError: as `prepare_directory`"""
        prepare_directory("output_dir", self.path)

    @property
    def is_complete(self) -> bool:
        return (self.path / COMPLETE_FILE).exists()

    def read_record(self) -> dict[str, Any] | None:
        """Whose the directory is, as the attempt before wrote it."""
        return read_json(self.path / IDENTITY_FILE)

    def read_finished(self) -> Result | None:
        """The result of a run that has finished."""
        return read_success(self.path / RESULT_FILE) if self.is_complete else None

    def make_room(self, config: Mapping[str, Any], inputs: Iterable[Path]) -> None:
        """`overwrite`: remove what another run left here.

        :param inputs: files that the run reads
        :raises ConfigError: `config` reads from what would be removed; nothing was
        """
        left = [path for pattern in LEFT_BY_A_RUN for path in self.path.glob(pattern)]
        _spare_inputs(config, inputs, left)
        for path in left:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        sync_directory(self.path)

    def set_aside(self, *checkpoints: Path) -> None:
        """Those of the run as it was, all where none is named: out of the way, and gone when the run has finished."""
        aside = self.path / SUPERSEDED_DIR / uuid.uuid4().hex[:8]
        aside.mkdir(parents=True)
        for checkpoint in checkpoints or self.path.glob("checkpoint-*"):
            checkpoint.rename(aside / checkpoint.name)
        sync_directory(self.path)

    def drop_superseded(self) -> None:
        shutil.rmtree(self.path / SUPERSEDED_DIR, ignore_errors=True)

    def drop_records_of_training(self) -> None:
        """What the run as it was has said of its training; the log of its attempts stays."""
        for name in (SAMPLES_FILE, STATISTICS_FILE, HISTORY_FILE, PROGRESS_FILE):
            (self.path / name).unlink(missing_ok=True)

    def keep_result(self, result: Result) -> None:
        """Beside the one that a longer run will leave."""
        write_json(self.path / f"result-step-{result.get('steps', 0)}.json", result)

    def claim(self, record: Mapping[str, Any]) -> int:
        """Make the directory this run's, take its completion mark away, and return the number of this attempt.

        An attempt that was killed wrote no end: its last sign of life is when it last wrote its progress.

        :param record: the run's identity
        """
        (self.path / COMPLETE_FILE).unlink(missing_ok=True)
        sync_directory(self.path)
        write_json(self.path / IDENTITY_FILE, record)
        attempts = self.attempts()
        if attempts and attempts[-1]["event"] == "started":
            last_sign = max(self._modified(self.path / PROGRESS_FILE), attempts[-1]["time"])
            self.record(attempts[-1]["attempt"], "lost", time=last_sign)
        return self.next_attempt()

    def next_attempt(self) -> int:
        return sum(entry["event"] == "started" for entry in self.attempts()) + 1

    def attempts(self) -> list[dict[str, Any]]:
        """What earlier attempts wrote, a torn last line left out."""
        return read_lines(self.path / ATTEMPTS_FILE, ATTEMPT_SHAPE)

    def record(self, attempt: int, event: str, **facts: Any) -> None:
        append_line(
            self.path / ATTEMPTS_FILE, {"attempt": attempt, "event": event, "time": time.time(), **facts}
        )

    def gpu_seconds(self) -> float:
        """GPUs times seconds over all attempts; one that was killed counts up to its last sign of life."""
        entries = self.attempts()
        started = {entry["attempt"]: entry for entry in entries if entry["event"] == "started"}
        ended = {entry["attempt"]: entry["time"] for entry in entries if entry["event"] != "started"}
        return sum(
            (ended.get(number, time.time()) - begin["time"])
            * (begin.get("gpus") if is_number(begin.get("gpus")) else 0)
            for number, begin in started.items()
        )

    def write_result(self, result: Result) -> None:
        write_json(self.path / RESULT_FILE, plain_value(result))

    @staticmethod
    def _modified(path: Path) -> float:
        return path.stat().st_mtime if path.exists() else 0.0


def read_samples(output_dir: Path) -> list[dict[str, Any]]:
    """Prompts with their answers; what is damaged is left out."""
    samples = (read_record(output_dir / SAMPLES_FILE, SAMPLES_SHAPE) or {}).get("samples", [])
    return [each for each in samples if isinstance(each, dict) and isinstance(each.get("prompt"), str)]


def _spare_inputs(config: Mapping[str, Any], inputs: Iterable[Path], left: list[Path]) -> None:
    doomed = {path.resolve() for path in left}
    for file in inputs:
        if found := doomed & {file.resolve(), *file.resolve().parents}:
            raise ConfigError(
                f"The run reads {file}, and 'overwrite' would remove {min(found)}. Move it out of output_dir, or give "
                "this run another output_dir."
            )
    for key, value in config.items():
        if isinstance(value, str) and "/" in value:
            path = Path(value).resolve()
            if found := doomed & {path, *path.parents}:
                raise ConfigError(
                    f"Config key {key!r} is {value!r}, and 'overwrite' would remove {min(found)}. Move it out of "
                    f"output_dir, or give this run another output_dir."
                )
