"""The parent's watch over its ranks: signals reach them, silence ends them, their end becomes one outcome. No torch."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from airflow_provider_sft.contract.errors import (
    InternalError,
    InterruptedRunError,
    LostRankError,
    MemoryExhaustedError,
    SFTError,
)
from airflow_provider_sft.contract.exit_codes import ExitCode
from trainer.cgroup import count_oom_kills, memory_limit_bytes
from trainer.launch import RANK_MODULE, Launch
from trainer.liveness import Liveness
from trainer.rank import ParentChannel, RankOutcome
from trainer.stop import StopRequest
from trainer.tether import tether

_POLL_S = 0.1
# After the first rank failed, the others get this long to notice before they are killed.
_LINGER_S = 10.0
LOCK_LOST = "Another run has taken output_dir over; this one ended without saving."
NOTHING_SAVED = "Interrupted before a step was complete; nothing new was saved."
_FAILURES = {kind.exit_code: kind for kind in SFTError.__subclasses__()}


@dataclass
class Supervisor:
    """Starts the ranks of this node and stays until they are gone.

    :param hang_timeout_s: silence of any rank for this long ends the run; 0 never does
    """

    launch: Launch
    env: Mapping[str, str]
    channel: ParentChannel
    stop: StopRequest
    hang_timeout_s: float
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def run(self) -> RankOutcome:
        """The outcome of rank 0.

        :raises SFTError: what ended the run: the earliest failure that a rank reported, else what can be told from
            outside (killed, out of memory, hung, interrupted)
        """
        oom_kills_before = count_oom_kills()
        self.stop.on_signal = self._pass_on
        # A session of its own: a terminal's Ctrl-C reaches the parent alone, and the whole group can be ended.
        command = tether(self.launch.argv)
        process = subprocess.Popen(command, env=dict(self.env), start_new_session=True)  # noqa: S603
        self._process = process
        if self.stop.count:
            self._pass_on(self.stop.count)
        try:
            self._watch(process)
        finally:
            self._kill_all(process.pid)
            process.wait()
            self.stop.on_signal = None
        return self._conclude(process.returncode, oom=count_oom_kills() > oom_kills_before)

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        ranks = self.launch.world_size // self.launch.nodes.count
        liveness = Liveness(range(self._first_rank, self._first_rank + ranks), self.hang_timeout_s)
        failed_at = 0.0
        while process.poll() is None:
            time.sleep(_POLL_S)
            liveness.check(self.channel.beats(), self.channel.rank_pids())
            if not failed_at and any(outcome.exit_code for outcome in self.channel.outcomes()):
                failed_at = time.monotonic()
            if failed_at and time.monotonic() - failed_at > _LINGER_S:
                return

    def _pass_on(self, count: int) -> None:
        """In a signal's middle: it sends signals and waits for nothing."""
        if not (process := self._process):
            return  # `run` comes here again once it has started one
        if count > 1:
            self._kill_all(process.pid)
            return
        # The ranks themselves, not accelerate's launcher: it would end them after 30 s, saved or not.
        for pid in self.channel.rank_pids().values() or [process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _kill_all(self, launcher: int) -> None:
        """Whatever is left, stopped processes too: the launcher's group, and the ranks, which have sessions of their
        own under it.
        """
        for pid in self.channel.rank_pids().values():
            if is_running(pid, RANK_MODULE):
                _kill(os.kill, pid)
        _kill(os.killpg, launcher)

    def _conclude(self, returncode: int, *, oom: bool) -> RankOutcome:
        outcomes = self.channel.outcomes()
        failures = sorted(
            (outcome for outcome in outcomes if outcome.exit_code), key=lambda outcome: outcome.time
        )
        if self.stop.lock_lost:
            raise InterruptedRunError(LOCK_LOST)
        if self.stop.count > 1:
            raise InterruptedRunError("Ended at once by a second signal; nothing new was saved.")
        # The ranks that outlive one killed for memory report a lost connection, which is not what a person can mend.
        if failures and not (oom and failures[0].exit_code == ExitCode.LOST_RANK):
            raise _to_error(failures[0])
        if outcomes and outcomes[0].rank == self._first_rank and returncode == 0:
            return outcomes[0]
        if self.stop.count:
            raise InterruptedRunError(NOTHING_SAVED)
        raise self._unexplained(returncode, oom=oom)

    @property
    def _first_rank(self) -> int:
        return self.launch.nodes.rank * (self.launch.world_size // self.launch.nodes.count)

    def _unexplained(self, returncode: int, *, oom: bool) -> SFTError:
        if oom:
            limit = memory_limit_bytes()
            reached = (
                f"The container's memory limit of {limit / 2**30:.1f} GiB was reached"
                if limit
                else "The host ran out of memory"
            )
            return MemoryExhaustedError(f"{reached} and a rank was killed.")
        if returncode < 0:
            return LostRankError(f"A rank was killed by {signal.Signals(-returncode).name}.")
        if self.launch.world_size > 1:
            return LostRankError("A rank ended without saying why.")
        return InternalError(f"The rank ended with code {returncode} without saying why.")


def _to_error(outcome: RankOutcome) -> SFTError:
    kind = _FAILURES.get(ExitCode(outcome.exit_code), InternalError)
    return kind(outcome.reason, advice=outcome.advice)


def _kill(kill: Callable[[int, int], None], pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        kill(pid, signal.SIGKILL)


def is_running(pid: int, module: str) -> bool:
    """A process of this number runs `python -m module`: numbers are used again."""
    with contextlib.suppress(OSError):
        return module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return False
