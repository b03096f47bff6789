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
    HangError,
    InternalError,
    InterruptedRunError,
    LostRankError,
    MemoryExhaustedError,
    SFTError,
)
from airflow_provider_sft.contract.exit_codes import ExitCode
from airflow_provider_sft.contract.progress import describe_duration
from trainer.launch import RANK_MODULE, Launch
from trainer.rank import ParentChannel, RankOutcome
from trainer.stop import StopRequest

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
        started = time.time()
        self.stop.on_signal = self._pass_on
        # A session of its own: a terminal's Ctrl-C reaches the parent alone, and the whole group can be ended.
        process = subprocess.Popen(self.launch.argv, env=dict(self.env), start_new_session=True)  # noqa: S603
        self._process = process
        if self.stop.count:
            self._pass_on(self.stop.count)
        try:
            self._watch(process, started)
        finally:
            self._kill_all(process.pid)
            process.wait()
            self.stop.on_signal = None
        return self._conclude(process.returncode, oom=count_oom_kills() > oom_kills_before)

    def _watch(self, process: subprocess.Popen[bytes], started: float) -> None:
        failed_at = 0.0
        while process.poll() is None:
            time.sleep(_POLL_S)
            self._check_alive(started)
            if not failed_at and any(outcome.exit_code for outcome in self.channel.outcomes()):
                failed_at = time.monotonic()
            if failed_at and time.monotonic() - failed_at > _LINGER_S:
                return

    def _check_alive(self, started: float) -> None:
        rank, since = self.channel.oldest_heartbeat() or (0, started)
        if self.hang_timeout_s and time.time() - max(since, started) > self.hang_timeout_s:
            raise HangError(
                f"Rank {rank} showed no sign of life for {describe_duration(self.hang_timeout_s)} (hang_timeout_s)."
            )

    def _pass_on(self, count: int) -> None:
        """In a signal's middle: it sends signals and waits for nothing."""
        if not (process := self._process):
            return  # `run` comes here again once it has started one
        if count > 1:
            self._kill_all(process.pid)
            return
        # The ranks themselves, not accelerate's launcher: it would end them after 30 s, saved or not.
        for pid in self.channel.rank_pids() or [process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _kill_all(self, launcher: int) -> None:
        """Whatever is left, stopped processes too: the launcher's group, and the ranks, which have sessions of their
        own under it.
        """
        for pid in self.channel.rank_pids():
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
            shown = f" of {limit / 2**30:.1f} GiB" if limit else ""
            return MemoryExhaustedError(
                f"The container's memory limit{shown} was reached and a rank was killed."
            )
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


def count_oom_kills() -> int:
    """How often the kernel has killed in this container's cgroup for memory (v2, then v1)."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        with contextlib.suppress(OSError, ValueError):
            for line in Path(path).read_text(encoding="ascii").splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def memory_limit_bytes() -> int | None:
    """The container's memory limit, None where there is none."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            limit = int(Path(path).read_text(encoding="ascii"))
            # cgroup v1 writes a huge number for no limit.
            return limit if limit < 1 << 60 else None
    return None
