"""The log of one node, followed while it is written: each line once, through lost connections, to the last line."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable

from airflow_provider_sft.api_patience import api_status, describe_api_error
from airflow_provider_sft.api_stream import stream_lines
from airflow_provider_sft.job_feed import Wire
from airflow_provider_sft.log_stamp import since_time, split_stamp, to_utc

_NOT_FOUND, _FORBIDDEN = 404, 403
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 30.0
_IDLE_S = 600.0  # a trainer that says nothing for longer is asked anew
_OVERLAP_S = 2.0  # of two reads: stdout and stderr are not written in the order of their times
_MANY_LINES = 1000


class NodeLog:
    """
    :param read_until: the time of the last line that an earlier reader told
    :param take: gets each new line, without its time
    """

    def __init__(
        self, path: str, container: str, wire: Wire, take: Callable[[str], None], *, read_until: str
    ) -> None:
        self.read_until = self._told_before = to_utc(read_until)
        self._path, self._container, self._wire, self._take = path, container, wire, take
        self._told: Counter[str] = Counter()
        self._in_this_read: Counter[str] = Counter()
        self._forget_at = _MANY_LINES
        self._pause_s = _FIRST_PAUSE_S
        self._failed = False

    async def follow(self, has_ended: Callable[[], bool]) -> None:
        """Return when the container has ended and its log is read to the end, or is gone."""
        while True:
            ended_before = has_ended()
            try:
                await self._read()
            except TimeoutError:  # nothing was said for a while
                continue
            except Exception as error:  # noqa: BLE001  # a lost log is no lost training
                if api_status(error) in (_NOT_FOUND, _FORBIDDEN):
                    return self._tell(error)
                self._tell(error)
                self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            else:
                if ended_before:
                    return None
            await asyncio.sleep(self._pause_s)

    async def _read(self) -> None:
        self._in_this_read.clear()
        query = {"container": self._container, "follow": "true", "timestamps": "true"}
        if self.read_until:
            query["sinceTime"] = since_time(self.read_until, margin_s=_OVERLAP_S)
        async for line in self._stream(query):
            self._take_line(line)
            self._pause_s = _FIRST_PAUSE_S

    def _stream(self, query: dict[str, str]) -> AsyncIterator[str]:
        return stream_lines(self._wire.hook(), self._path, query, idle_timeout_s=_IDLE_S)

    def _take_line(self, line: str) -> None:
        """Equal lines of one time are logged as often as they were written."""
        stamp, text = split_stamp(line)
        if stamp and stamp <= self._told_before:
            return
        self._in_this_read[line] += 1
        if self._in_this_read[line] <= self._told[line]:
            return
        self._told[line] += 1
        self.read_until = max(self.read_until, stamp)
        if len(self._told) >= self._forget_at:
            self._forget_old_lines()
        self._take(text)

    def _forget_old_lines(self) -> None:
        """Those that no later read will bring."""
        first = since_time(self.read_until, margin_s=_OVERLAP_S).rstrip("Z") if self.read_until else ""
        for counted in (self._told, self._in_this_read):
            for line in [line for line in counted if split_stamp(line)[0] < first]:
                del counted[line]
        self._forget_at = _MANY_LINES + 2 * len(self._told)

    def _tell(self, error: Exception) -> None:
        """Once; a node that is lost has no log for a while. A pod that is gone after it was followed is none to tell of."""
        if not self._failed and not (api_status(error) == _NOT_FOUND and self.read_until):
            self._failed = True
            self._wire.log.warning("The log cannot be read now: %s", describe_api_error(error))
