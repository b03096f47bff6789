"""Which rank is silent, and for how long: signs of life are compared with the last look, no clock with another. No torch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from airflow_provider_sft.contract.errors import HangError
from airflow_provider_sft.contract.progress import describe_duration
from trainer.run_time import RunTime

_LONGEST_TICK_S = 0.5
_STOPPED = "Tt"  # by a signal, by a debugger


class Liveness:
    """
    :param ranks: of this node; one that never gave a sign is silent from the start
    :param hang_timeout_s: silence of any rank for this long is a hang; 0 never is
    """

    def __init__(self, ranks: Sequence[int], hang_timeout_s: float) -> None:
        self._hang_timeout_s = hang_timeout_s
        self._clock = RunTime(_LONGEST_TICK_S)
        self._beats = dict.fromkeys(ranks, 0)
        self._heard_at_s = dict.fromkeys(ranks, 0.0)

    def check(self, beats: Mapping[int, int], pids: Mapping[int, int]) -> None:
        """Call it at short intervals.

        :param beats: how many signs of life each rank has given
        :param pids: the ranks' processes
        :raises HangError: names the rank that the others wait for, where that can be told
        """
        now_s = self._clock.tick()
        for rank, count in beats.items():
            if self._beats.get(rank) != count:
                self._beats[rank], self._heard_at_s[rank] = count, now_s
        silent_s = now_s - min(self._heard_at_s.values(), default=now_s)
        if self._hang_timeout_s and silent_s > self._hang_timeout_s:
            raise HangError(
                f"{self._name_silent(pids)} showed no sign of life for {describe_duration(self._hang_timeout_s)} "
                "(hang_timeout_s)."
            )

    def _name_silent(self, pids: Mapping[int, int]) -> str:
        """One rank that stands still brings the others to a halt, each at the next thing that they do together."""
        if stopped := [rank for rank in sorted(self._beats) if _is_stopped(pids.get(rank))]:
            return f"{_name(stopped)} {'is' if len(stopped) == 1 else 'are'} stopped (SIGSTOP) and"
        fewest = min(self._beats.values())
        return _name(sorted(rank for rank, count in self._beats.items() if count == fewest))


def _name(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"Rank {ranks[0]}"
    return f"Ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"


def _is_stopped(pid: int | None) -> bool:
    with contextlib.suppress(OSError, IndexError):
        # The state follows the name, which stands in brackets and may hold any character.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] in _STOPPED
    return False
