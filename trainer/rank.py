"""How the parent and its ranks talk: files in a private scratch directory. Stdlib only.

run.json          parent → ranks: what to do
parent-pid        the parent's process id: ranks end when it is gone
heartbeat-<rank>  its time, in seconds, is the number of signs of life that a rank has given: a full disk takes that too
pid-<rank>        the rank's process id, for signals
outcome-<rank>    rank → parent: how it ended; the earliest failure is the run's
notices-<rank>    sentences for the result, a JSON string a line
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.errors import SFTError
from airflow_provider_sft.contract.exit_codes import ExitCode
from trainer.files import read_json, write_json

SCRATCH_ENV_VAR = "SFT_SCRATCH_DIR"
_PARENT_WATCH_S = 0.2


@dataclass(frozen=True)
class RunOrder:
    """What the parent asks of its ranks.

    :param resume_from: the checkpoint to go on from, or None
    :param digests: of every file that shapes the run: what the ranks read must be what these are of
    :param checkpoint_facts: for each checkpoint's manifest
    """

    config: dict[str, Any]
    output_dir: str
    model_dir: str
    attempt: int
    config_sha256: str
    data_sha256: str
    resume_from: str | None = None
    digests: dict[str, Any] = field(default_factory=dict)
    checkpoint_facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RankOutcome:
    """How a rank ended: `facts` are fields of the result."""

    rank: int
    exit_code: int
    reason: str = ""
    advice: str = ""
    time: float = field(default_factory=time.time)
    facts: dict[str, Any] = field(default_factory=dict)


class RankChannel:
    """A rank's end of the scratch directory."""

    def __init__(self, scratch_dir: Path, rank: int) -> None:
        self._scratch_dir = scratch_dir
        self.rank = rank
        self._heartbeat = scratch_dir / f"heartbeat-{rank}"
        self._beats = 0

    @classmethod
    def open(cls, environ: Mapping[str, str]) -> RankChannel:
        channel = cls(Path(environ[SCRATCH_ENV_VAR]), int(environ.get("RANK", "0")))
        (channel._scratch_dir / f"pid-{channel.rank}").write_text(str(os.getpid()), encoding="ascii")
        channel.beat()
        return channel

    def end_with_parent(self) -> None:
        """A parent that was killed can pass nothing on, and its lock is free for another run: this rank ends at once."""
        parent = int((self._scratch_dir / "parent-pid").read_text(encoding="ascii"))
        threading.Thread(target=_outlive_nobody, args=[parent], name="parent-watch", daemon=True).start()

    def order(self) -> RunOrder:
        return RunOrder(**(read_json(self._scratch_dir / "run.json") or {}))

    def beat(self) -> None:
        """A sign of life: a step, a batch of evaluation, a chunk of data, a save."""
        self._beats += 1
        if self._beats == 1:
            self._heartbeat.touch()
        os.utime(self._heartbeat, (self._beats, self._beats))

    def notice(self, sentence: str) -> None:
        """For people: in the log and in the result. Rank 0 alone is heard."""
        if self.rank == 0:
            logging.getLogger("trainer").warning("%s", sentence)
        with (self._scratch_dir / f"notices-{self.rank}").open("a", encoding="utf-8") as file:
            file.write(json.dumps(sentence) + "\n")

    def notices(self) -> list[str]:
        return _read_notices(self._scratch_dir)

    def report(self, outcome: RankOutcome) -> None:
        write_json(self._scratch_dir / f"outcome-{self.rank}", asdict(outcome))

    def report_error(self, error: SFTError, **facts: Any) -> None:
        self.report(
            RankOutcome(self.rank, int(error.exit_code), str(error.reason), error.advice, facts=facts)
        )


def _outlive_nobody(parent: int) -> None:
    # A killed process that nobody has waited for yet has no command line any more.
    with contextlib.suppress(OSError):
        while Path(f"/proc/{parent}/cmdline").read_bytes():
            time.sleep(_PARENT_WATCH_S)
    if Path("/proc/self").exists():
        os._exit(ExitCode.LOST_RANK)


class ParentChannel:
    """The parent's end."""

    def __init__(self, scratch_dir: Path, order: RunOrder) -> None:
        self.scratch_dir = scratch_dir
        (scratch_dir / "parent-pid").write_text(str(os.getpid()), encoding="ascii")
        write_json(scratch_dir / "run.json", asdict(order))

    def rank_pids(self) -> dict[int, int]:
        """By rank."""
        pids = {}
        for path in self.scratch_dir.glob("pid-*"):
            with contextlib.suppress(OSError, ValueError):  # just being written
                pids[int(path.name.removeprefix("pid-"))] = int(path.read_text(encoding="ascii"))
        return pids

    def beats(self) -> dict[int, int]:
        """How many signs of life each rank has given."""
        beats = {}
        for path in self.scratch_dir.glob("heartbeat-*"):
            with contextlib.suppress(OSError):
                beats[int(path.name.removeprefix("heartbeat-"))] = int(path.stat().st_mtime)
        return beats

    def outcomes(self) -> list[RankOutcome]:
        """By rank."""
        found = [read_json(path) for path in self.scratch_dir.glob("outcome-*")]
        return sorted((RankOutcome(**outcome) for outcome in found if outcome), key=lambda o: o.rank)

    def notices(self) -> list[str]:
        return _read_notices(self.scratch_dir)


def _read_notices(scratch_dir: Path) -> list[str]:
    """Rank 0's."""
    path = scratch_dir / "notices-0"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return list(dict.fromkeys(json.loads(line) for line in lines))
