"""A deferred task that looks again in a while, without a worker's slot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent


class PauseTrigger(BaseTrigger):
    """
    :param seconds: begun anew by a triggerer that takes over
    :param known: what the task has to know then: the event
    """

    def __init__(self, seconds: float, known: dict[str, Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds, self.known = seconds, known

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{type(self).__module__}.{type(self).__qualname__}", {
            "seconds": self.seconds,
            "known": self.known,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        await asyncio.sleep(self.seconds)
        yield TriggerEvent(self.known)  # type: ignore[no-untyped-call]
