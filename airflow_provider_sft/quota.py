"""A namespace whose ResourceQuota is full: what is created when there is room, and how long that is waited for."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_sft.api_patience import api_status, describe_api_error
from airflow_provider_sft.contract.progress import describe_duration
from airflow_provider_sft.failures import TransientFailure

_FORBIDDEN = 403


class QuotaFullError(Exception):
    """The API's own words: which quota, how much is asked for, used and allowed."""


def find_full_quota(error: Exception) -> QuotaFullError | None:
    """Another 403 is final."""
    said = describe_api_error(error)
    if api_status(error) == _FORBIDDEN and "exceeded quota" in said:
        return QuotaFullError(said.partition(": ")[2])
    return None


@dataclass
class QuotaWait:
    """
    :param limit_s: from the first refusal to giving up
    :param since_s: when that was, by the clock of the day: another worker may go on waiting
    :param said: what was logged last
    """

    log: Any
    limit_s: float
    since_s: float = field(default_factory=time.time)
    said: str = ""

    def take(self, full: QuotaFullError) -> None:
        """:raises TransientFailure: the limit is reached"""
        if str(full) != self.said:
            self.said = str(full)
            self.log.info("The namespace's quota has no room yet, and this task waits for it: %s", full)
        if time.time() - self.since_s >= self.limit_s:
            raise TransientFailure(
                f"The namespace's quota had no room for {describe_duration(self.limit_s)}, and the task was given up. "
                f"Last: {full}. Raise the quota or the time-out, or ask for less."
            )
