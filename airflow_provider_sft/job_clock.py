"""How long a job has waited, started and run: three clocks, of which one goes. Kept on the job, with its log's place."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from airflow_provider_sft.api_patience import describe_api_error
from airflow_provider_sft.api_stream import send

NOTE_ANNOTATION = "airflow-provider-sft/watched"
_INTERVAL_S = 30.0
Phase = Literal["queue", "start", "run", ""]


@dataclass
class Clock:
    """Goes on where another watcher stopped.

    :param since_s: when the phase began, by the wall clock
    :param run_s: of running so far, over all restarts
    """

    phase: Phase = ""
    since_s: float = 0.0
    run_s: float = 0.0
    at_s: float = 0.0

    def tick(self, phase: Phase, now_s: float) -> None:
        if self.phase == "run":
            self.run_s += now_s - self.at_s
        self.at_s = now_s
        if phase != self.phase:
            self.phase, self.since_s = phase, now_s

    @property
    def waited_s(self) -> float:
        """In the phase of now."""
        return self.at_s - self.since_s


@dataclass
class Note:
    """What the next watcher needs to know; nothing depends on it but time limits and a log told once.

    :param logs: by a pod's uid, the time of its last line that was told
    """

    clock: Clock = field(default_factory=Clock)
    logs: dict[str, str] = field(default_factory=dict)


def read_note(job: Mapping[str, Any]) -> Note:
    """What the last watcher left on the job."""
    text = (job["metadata"].get("annotations") or {}).get(NOTE_ANNOTATION)
    try:
        told = json.loads(text or "{}")
        return Note(Clock(**told["clock"]), dict(told["logs"]))
    except (ValueError, KeyError, TypeError):
        return Note()


class NoteKeeper:
    """Writes the note to the job now and then, and when the watcher stops."""

    def __init__(self, path: str, log: Any) -> None:
        self._path, self._log = path, log
        self._saved, self._saved_at_s = "", time.monotonic()
        self._refused = False

    async def save_at_times(self, hook: Any, note: Note) -> None:
        if time.monotonic() - self._saved_at_s >= _INTERVAL_S:
            await self.save(hook, note)

    async def save(self, hook: Any, note: Note) -> None:
        text = json.dumps(asdict(note), separators=(",", ":"))
        self._saved_at_s = time.monotonic()
        if self._refused or text == self._saved:
            return
        try:
            await send(hook, "PATCH", self._path, {"metadata": {"annotations": {NOTE_ANNOTATION: text}}})
        except Exception as error:  # noqa: BLE001  # told once
            self._refused = True
            self._log.warning(
                "How far the job is watched cannot be kept on it, so a new watcher counts and tells anew: %s",
                describe_api_error(error),
            )
        else:
            self._saved = text
