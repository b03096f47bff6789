"""What `output_dir` says about the run it belongs to: whose it is, how often it was tried, whether it is done.

Stdlib only: this decides, before anything heavy is imported, whether there is anything to do.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
from trainer.files import append_line, digest_json, fingerprint_file, read_json, sync_directory, write_json
from trainer.outcome import read_success
from trainer.paths import prepare_directory
from trainer.records import NUMBER, Shape, is_number, read_lines, read_record

SAMPLES_FILE = ".sft.samples.json"
STATISTICS_FILE = ".sft.statistics.json"
PREPARED_DIR = ".sft.prepared"
ATTEMPT_SHAPE: Shape = {"attempt": int, "event": str, "time": NUMBER}
SAMPLES_SHAPE: Shape = {"samples": list}
# Keys that change how a run is watched or told, not what is trained: a retry may change them.
_NOT_IDENTITY = frozenset(
    {"overwrite", "hang_timeout_s", "resume_from_checkpoint", "report", "generate_samples", "log_level"}
)


@dataclass(frozen=True)
class RunIdentity:
    """A run is the same run when all four agree."""

    config_sha256: str
    data_sha256: str
    base_model_sha256: str
    run_id: str

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        names = {
            "config_sha256": "config",
            "data_sha256": "data",
            "base_model_sha256": "base model",
            "run_id": "SFT_RUN_ID",
        }
        return [name for field, name in names.items() if other.get(field) != asdict(self)[field]]


def identify_run(config: Mapping[str, Any], *, data_sha256: str, run_id: str) -> RunIdentity:
    kept = {key: value for key, value in config.items() if key not in _NOT_IDENTITY}
    return RunIdentity(
        config_sha256=digest_json(kept),
        data_sha256=data_sha256,
        base_model_sha256=_digest_model(str(config["model_name_or_path"])),
        run_id=run_id,
    )


def _digest_model(name_or_path: str) -> str:
    """A Hub id by its name; a directory by the fingerprints of its config, tokenizer and weights."""
    directory = Path(name_or_path)
    if not directory.is_dir():
        return digest_json(name_or_path)
    files = sorted(path for path in directory.iterdir() if path.suffix in (".json", ".safetensors", ".model"))
    return digest_json({path.name: fingerprint_file(path) for path in files})


class RunDir:
    """The output_dir of one run. Nothing is changed before `claim`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self) -> None:
        """:raises SFTError: as `prepare_directory`"""
        prepare_directory("output_dir", self.path)

    def finished(self, identity: RunIdentity) -> Result | None:
        """The result of this very run when it is complete.

        :raises ConfigError: the directory is another run's, finished or not
        """
        found = read_json(self.path / IDENTITY_FILE)
        if found is None and (self.path / COMPLETE_FILE).exists():
            raise self._taken(["run"])
        if found is not None and (differences := identity.differences(found)):
            raise self._taken(differences)
        if not (self.path / COMPLETE_FILE).exists():
            return None
        return read_success(self.path / RESULT_FILE)

    def make_room_for(self, identity: RunIdentity, config: Mapping[str, Any]) -> None:
        """`overwrite`: remove what another run left here. What this very run left stays, to resume from.

        :raises ConfigError: `config` reads from what would be removed; nothing was
        """
        found = read_json(self.path / IDENTITY_FILE)
        is_ours = found is not None and not identity.differences(found)
        if is_ours or (found is None and not (self.path / COMPLETE_FILE).exists()):
            return
        left = [path for pattern in LEFT_BY_A_RUN for path in self.path.glob(pattern)]
        _spare_inputs(config, left)
        for path in left:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        sync_directory(self.path)

    def claim(self, identity: RunIdentity) -> int:
        """Make the directory this run's, take its completion mark away, and return the number of this attempt.

        An attempt that was killed wrote no end: its last sign of life is when it last wrote its progress.
        """
        (self.path / COMPLETE_FILE).unlink(missing_ok=True)
        sync_directory(self.path)
        write_json(self.path / IDENTITY_FILE, asdict(identity))
        attempts = self.attempts()
        if attempts and attempts[-1]["event"] == "started":
            last_sign = max(self._modified(self.path / PROGRESS_FILE), attempts[-1]["time"])
            self.record(attempts[-1]["attempt"], "lost", time=last_sign)
        return sum(entry["event"] == "started" for entry in attempts) + 1

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

    def complete(self, result: Result) -> None:
        """Written last: the result, then the mark that says everything asked for is there."""
        self.write_result(result)
        (self.path / COMPLETE_FILE).touch()
        sync_directory(self.path)

    def write_result(self, result: Result) -> None:
        write_json(self.path / RESULT_FILE, plain_value(result))

    @staticmethod
    def _modified(path: Path) -> float:
        return path.stat().st_mtime if path.exists() else 0.0

    def _taken(self, differences: list[str]) -> ConfigError:
        return ConfigError(
            f"output_dir {self.path} belongs to another run (its {' and '.join(differences)} differ). "
            f"Use a directory per run, or set 'overwrite': true to replace what is there."
        )


def read_samples(output_dir: Path) -> list[dict[str, Any]]:
    """Prompts with their answers; what is damaged is left out."""
    samples = (read_record(output_dir / SAMPLES_FILE, SAMPLES_SHAPE) or {}).get("samples", [])
    return [each for each in samples if isinstance(each, dict) and isinstance(each.get("prompt"), str)]


def _spare_inputs(config: Mapping[str, Any], left: list[Path]) -> None:
    doomed = {path.resolve() for path in left}
    for key, value in config.items():
        if isinstance(value, str) and "/" in value:
            path = Path(value).resolve()
            if found := doomed & {path, *path.parents}:
                raise ConfigError(
                    f"Config key {key!r} is {value!r}, and 'overwrite' would remove {min(found)}. Move it out of "
                    f"output_dir, or give this run another output_dir."
                )
