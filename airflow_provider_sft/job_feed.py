"""A collection of the Kubernetes API kept up to date: listed once, then watched, through lost connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_sft.api_patience import api_status, describe_api_error
from airflow_provider_sft.api_stream import fetch, stream_lines

_FORBIDDEN, _NOT_FOUND, _GONE = 403, 404, 410
_WATCH_S = 300
# Bookmarks come every minute; a connection that is silent for longer is dead.
_IDLE_S = _WATCH_S + 30.0
_BREATH_S = 0.2  # where something in between ends every watch at once


@dataclass(frozen=True)
class Source:
    """:param what: as a message names it, such as `pods`"""

    what: str
    path: str
    query: Mapping[str, str]


@dataclass(frozen=True)
class Wire:
    """How a reader reaches the API server.

    :param hook: the hook of now; credentials that expired are read anew by the next one
    :param take_success: told when the server answered
    :param pause_after: pauses after an error that passes, and raises any other
    """

    hook: Callable[[], Any]
    take_success: Callable[[], None]
    pause_after: Callable[[Exception], Awaitable[None]]
    log: Any


class Feed:
    """
    :param on_change: called after each change
    :param poll_interval_s: where the collection may be listed and not watched
    """

    def __init__(
        self, source: Source, wire: Wire, on_change: Callable[[], None], poll_interval_s: float
    ) -> None:
        self.source = source
        self.is_read = False
        self.refusal = ""  # the server's words, where nothing may be read
        self.is_served = True
        self._objects: dict[str, dict[str, Any]] = {}
        self._removed: list[dict[str, Any]] = []
        self._wire, self._on_change, self._poll_interval_s = wire, on_change, poll_interval_s
        self._watchable = True

    @property
    def objects(self) -> list[dict[str, Any]]:
        return list(self._objects.values())

    @property
    def is_settled(self) -> bool:
        """Read, or known to be out of sight."""
        return self.is_read or bool(self.refusal) or not self.is_served

    def take_removed(self) -> list[dict[str, Any]]:
        """What was deleted since the last call, as it last was."""
        removed, self._removed = self._removed, []
        return removed

    async def run(self) -> None:
        """Until cancelled, or until there is nothing to be read."""
        while self.is_served and not self.refusal:
            try:
                version = await self.refresh()
                while self._watchable:
                    version = await self._watch(version)
                    await asyncio.sleep(_BREATH_S)
                await asyncio.sleep(self._poll_interval_s)
            except Exception as error:  # noqa: BLE001  # told apart by its status
                await self._take_failure(error)

    async def refresh(self) -> str:
        """List everything again; the answer's version is where a watch goes on."""
        document = await fetch(self._wire.hook(), self.source.path, self.source.query)
        self._wire.take_success()
        found = {each["metadata"]["uid"]: each for each in document["items"]}
        self._removed += [obj for uid, obj in self._objects.items() if uid not in found]
        self._objects, self.is_read = found, True
        self._on_change()
        return str(document["metadata"]["resourceVersion"])

    async def _watch(self, version: str) -> str:
        """One watch, to its end; the version that the next one begins with."""
        query = {
            **self.source.query,
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_S),
        }
        async for line in stream_lines(self._wire.hook(), self.source.path, query, idle_timeout_s=_IDLE_S):
            event = json.loads(line)
            if event["type"] == "ERROR":
                raise _WatchError(event["object"])
            version = event["object"]["metadata"]["resourceVersion"]
            self._take(event["type"], event["object"])
        return version

    def _take(self, kind: str, obj: dict[str, Any]) -> None:
        if kind == "BOOKMARK":
            return
        if kind == "DELETED":
            self._objects.pop(obj["metadata"]["uid"], None)
            self._removed.append(obj)
        else:
            self._objects[obj["metadata"]["uid"]] = obj
        self._on_change()

    async def _take_failure(self, error: Exception) -> None:
        status = api_status(error)
        if status == _GONE:  # the version is too old: list again
            return
        if status == _NOT_FOUND:
            self.is_served = False
        elif status == _FORBIDDEN and self.is_read:
            self._watchable = False
            self._tell(f"may list but not watch {self.source.what}, and looks every few seconds", error)
        elif status == _FORBIDDEN:
            self.refusal = describe_api_error(error)
            self._tell(f"may not see {self.source.what}, and goes on without", error)
        else:
            await self._wire.pause_after(error)
        self._on_change()

    def _tell(self, what: str, error: Exception) -> None:
        self._wire.log.warning("Airflow %s: %s", what, describe_api_error(error))


class _WatchError(Exception):
    """An ERROR event: its object is a Status."""

    def __init__(self, status: Mapping[str, Any]) -> None:
        super().__init__(status.get("message", "the watch failed"))
        self.status = status.get("code", 0)
