"""A run while it goes on, for the people who watch Airflow: readable log lines, the task state store, metrics."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from airflow_provider_sft.contract.progress import Progress, decode_progress, describe_progress
from airflow_provider_sft.failures import clean_text
from airflow_provider_sft.metrics import Tags, emit_progress

_STORE_INTERVAL_S = 10.0  # one write is a round trip to the API server
_STORE_KEY = "progress"
_LEVEL = re.compile(r"^\s*\[?(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b", re.IGNORECASE)
# Before what the trainer says: Airflow's log has time and level of its own.
_TRAINERS_PREFIX = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ([A-Z]+) trainer[\w.]*:(?: |$)")


class ProgressReport:
    """Takes the trainer's lines one by one. Progress is told once, by attempt and step, however often it comes.

    :param store: Airflow 3.3's `context["task_state_store"]`, where there is one
    :param form: what a person reads of a line that is no progress
    :param tags: of the metrics
    """

    def __init__(
        self,
        log: Any,
        store: Any | None = None,
        form: Callable[[str], str] = lambda text: text,
        tags: Tags | None = None,
    ) -> None:
        self.tags = tags or {}
        self._form = form
        self.last: Progress | None = None
        self._log = log
        self._store = store
        self._stored_at = float("-inf")

    def take(self, line: str) -> None:
        if progress := decode_progress(line):
            self._take_progress(progress)
        elif text := clean_text(line).rstrip():
            self._log.log(_level_of(text), "%s", self._form(_TRAINERS_PREFIX.sub("", text)))

    def _take_progress(self, progress: Progress) -> None:
        if self.last and _position(progress) <= _position(self.last):
            return
        self.last = progress
        self._log.info("%s", describe_progress(progress))
        emit_progress(progress, self.tags)
        if time.monotonic() - self._stored_at >= _STORE_INTERVAL_S:
            self.store()

    def store(self) -> None:
        """Write the last progress to the task state store now."""
        self._stored_at = time.monotonic()
        try:
            store_progress(self._store, self.last)
        except Exception:  # noqa: BLE001  # a run is worth more than its progress bar
            self._log.warning("The task state store takes no progress; training goes on.", exc_info=True)
            self._store = None


def store_progress(store: Any | None, progress: Progress | None) -> None:
    """:param store: None before Airflow 3.3"""
    if store is not None and progress is not None:
        store.set(_STORE_KEY, dict(progress))


def _position(progress: Progress) -> tuple[int, int, bool]:
    return progress.get("attempt", 1), progress["step"], "eval_loss" in progress


def _level_of(text: str) -> int:
    match = _TRAINERS_PREFIX.match(text) or _LEVEL.match(text)
    levels: Mapping[str, int] = logging.getLevelNamesMapping()
    return levels.get(match.group(1).upper(), logging.INFO) if match else logging.INFO
