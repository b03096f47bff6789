"""The log of one node, followed while it is written: each line once, through lost connections, to the last line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from airflow_provider_sft.api_patience import api_status, describe_api_error
from airflow_provider_sft.api_stream import stream_lines
from airflow_provider_sft.job_feed import Wire

_NOT_FOUND, _FORBIDDEN = 404, 403
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 30.0
_IDLE_S = 600.0  # a trainer that says nothing for longer is asked anew
_STAMP_SECONDS = len("2026-01-01T00:00:00")


class NodeLog:
    """
    :param read_until: the time of the last line that an earlier reader told
    :param take: gets each new line, without its time
    """

    def __init__(
        self, path: str, container: str, wire: Wire, take: Callable[[str], None], *, read_until: str
    ) -> None:
        self.read_until = read_until
        self._path, self._container, self._wire, self._take = path, container, wire, take
        self._at_last_stamp: set[str] | None = None  # not known of an earlier reader
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
        query = {"container": self._container, "follow": "true", "timestamps": "true"}
        if self.read_until:  # the API takes whole seconds
            query["sinceTime"] = f"{self.read_until[:_STAMP_SECONDS]}Z"
        lines = stream_lines(self._wire.hook(), self._path, query, idle_timeout_s=_IDLE_S)
        async for line in lines:
            stamp, _, text = line.partition(" ")
            if self._is_new(stamp, text):
                self._take(text)
            self._pause_s = _FIRST_PAUSE_S

    def _is_new(self, stamp: str, text: str) -> bool:
        """The kubelet's stamps have nine digits and are in UTC, so that text sorts as time does."""
        if stamp > self.read_until:
            self.read_until, self._at_last_stamp = stamp, {text}
            return True
        if stamp < self.read_until or self._at_last_stamp is None or text in self._at_last_stamp:
            return False
        self._at_last_stamp.add(text)
        return True

    def _tell(self, error: Exception) -> None:
        """Once; a node that is lost has no log for a while. A pod that is gone after it was followed is none to tell of."""
        if not self._failed and not (api_status(error) == _NOT_FOUND and self.read_until):
            self._failed = True
            self._wire.log.warning("The log cannot be read now: %s", describe_api_error(error))
