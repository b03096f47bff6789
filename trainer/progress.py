"""What a run says while it goes on: a JSON line on stdout, `progress.json`, the history that the report draws from,
and fms-hf-tuning's `training_logs.jsonl`. Stdlib only; rank 0 alone writes.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.names import PROGRESS_FILE, TRAINING_LOGS_FILE
from airflow_provider_sft.contract.progress import Progress, encode_progress
from trainer.files import write_atomically, write_json
from trainer.records import Shape, is_number, read_lines, read_record
from trainer.streams import print_line

HISTORY_FILE = ".sft.history.jsonl"
HISTORY_SHAPE: Shape = {"step": int}
PROGRESS_SHAPE: Shape = {"attempt": int, "step": int}
_DIGITS = {"loss": 6, "learning_rate": 12, "grad_norm": 6, "eval_loss": 6, "tokens_per_s": 1}


class ProgressWriter:
    """Every logging step of one attempt.

    :param resumed_from_step: history beyond it belongs to steps that are trained again, and is dropped
    :param training_logs_file: the file logger's, in output_dir (`training_logs_filename`)
    """

    def __init__(
        self,
        output_dir: Path,
        *,
        attempt: int,
        resumed_from_step: int,
        training_logs_file: str = TRAINING_LOGS_FILE,
    ) -> None:
        self._output_dir = output_dir
        self._training_logs_file = training_logs_file
        self._attempt = attempt
        self._first_step = resumed_from_step
        self._started = time.monotonic()
        self._drop_steps_after(resumed_from_step)

    def write(self, step: int, max_steps: int, epoch: float, logs: Mapping[str, float]) -> Progress:
        """:param logs: as transformers names them: loss, learning_rate, grad_norm, eval_loss, and tokens_per_s"""
        progress: Progress = {
            "event": "progress",
            "attempt": self._attempt,
            "step": step,
            "max_steps": max_steps,
            "epoch": round(epoch, 4),
            **_finite(logs),  # type: ignore[typeddict-item]
        }
        if step > self._first_step:
            seconds_a_step = (time.monotonic() - self._started) / (step - self._first_step)
            progress["eta_s"] = round(seconds_a_step * (max_steps - step), 1)
        print_line(encode_progress(progress))
        write_json(self._output_dir / PROGRESS_FILE, progress)
        self._append(HISTORY_FILE, dict(progress))
        for name, key in (("training_loss", "loss"), ("validation_loss", "eval_loss")):
            if key in progress:
                self._append(self._training_logs_file, _file_logger_entry(name, progress, key))
        return progress

    def _append(self, name: str, entry: dict[str, Any]) -> None:
        with (self._output_dir / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def _drop_steps_after(self, step: int) -> None:
        kept = [entry for entry in read_history(self._output_dir) if entry["step"] <= step]
        text = "".join(json.dumps(entry) + "\n" for entry in kept)
        write_atomically(self._output_dir / HISTORY_FILE, text)


def read_history(output_dir: Path) -> list[dict[str, Any]]:
    """Every logging step of the run, over all attempts, in order; what is torn or damaged is left out."""
    entries = read_lines(output_dir / HISTORY_FILE, HISTORY_SHAPE)
    return [entry for entry in entries if all(is_number(entry.get(name, 0)) for name in _DIGITS)]


def read_step(output_dir: Path, attempt: int) -> int | None:
    """The step that `attempt` reached, from the progress that it wrote."""
    progress = read_record(output_dir / PROGRESS_FILE, PROGRESS_SHAPE) or {}
    return int(progress["step"]) if progress.get("attempt") == attempt else None


def summarize_losses(history: list[dict[str, Any]]) -> dict[str, float]:
    """`train_loss_first`, `_last` and `_best`, and the last `eval_loss`, as far as they were logged."""
    losses = [entry["loss"] for entry in history if "loss" in entry]
    eval_losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    summary = {}
    if losses:
        summary = {
            "train_loss_first": losses[0],
            "train_loss_last": losses[-1],
            "train_loss_best": min(losses),
        }
    if eval_losses:
        summary["eval_loss"] = eval_losses[-1]
    return summary


def _finite(logs: Mapping[str, float]) -> dict[str, float]:
    """The numbers that a progress line carries, at the precision a reader needs; JSON has no NaN."""
    return {
        name: round(logs[name], places)
        for name, places in _DIGITS.items()
        if name in logs and math.isfinite(logs[name])
    }


def _file_logger_entry(name: str, progress: Progress, key: str) -> dict[str, Any]:
    """One line of fms-hf-tuning's file_logger."""
    data = {
        "epoch": progress["epoch"],
        "step": progress["step"],
        "timestamp": dt.datetime.now(tz=dt.UTC).isoformat(),
        "value": progress[key],  # type: ignore[literal-required]
    }
    return {"data": data, "name": name}
