"""Patience with an API server that is away for a while: a training of days outlives many of its failures."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from airflow_provider_sft.contract.progress import describe_duration

T = TypeVar("T")

PATIENCE_S = 1800.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_UNAUTHORIZED = 401
_PASSING_STATUSES = (_UNAUTHORIZED, 408, 429, 500, 502, 503, 504)


class ApiAwayError(Exception):
    """The API server could not be reached for as long as patience lasts."""


class Patience:
    """Counts the failures since the last success.

    :param limit_s: from the first failure to giving up
    """

    def __init__(self, log: Any, limit_s: float = PATIENCE_S) -> None:
        self._log = log
        self._limit_s = limit_s
        self._failing_since_s: float | None = None
        self._pause_s = _FIRST_PAUSE_S

    @property
    def failing_s(self) -> float:
        return 0.0 if self._failing_since_s is None else time.monotonic() - self._failing_since_s

    def take_success(self) -> None:
        if self._failing_since_s is not None:
            self._log.info("The Kubernetes API answers again.")
        self._failing_since_s, self._pause_s = None, _FIRST_PAUSE_S

    def take_failure(self, error: Exception) -> float:
        """The seconds to pause before the next try.

        :raises ApiAwayError: patience is at its end
        """
        now = time.monotonic()
        if self._failing_since_s is None:
            self._failing_since_s = now
            self._log.warning(
                "The Kubernetes API failed (%s); the pod is left alone.", describe_api_error(error)
            )
        if now - self._failing_since_s >= self._limit_s:
            raise ApiAwayError(
                f"The Kubernetes API failed for {describe_duration(self._limit_s)}: {describe_api_error(error)}"
            ) from None
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, _LONGEST_PAUSE_S)
        return pause_s

    def insist(self, work: Callable[[], T], *, refresh: Callable[[], None]) -> T:
        """`work()` until it gives a result or an error that does not pass.

        :param refresh: reads the credentials again, after a 401
        """
        while True:
            try:
                with _without_retry_warnings():
                    result = work()
            except Exception as error:
                if not is_passing(error):
                    raise
                time.sleep(self.take_failure(error))
                if api_status(error) == _UNAUTHORIZED:
                    refresh()
            else:
                self.take_success()
                return result


@contextlib.contextmanager
def _without_retry_warnings() -> Iterator[None]:
    """urllib3 warns at each of its own tries; what counts is said once, by `take_failure`."""
    logger = logging.getLogger("urllib3.connectionpool")
    logger.addFilter(_is_no_retry_warning)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_retry_warning)


def _is_no_retry_warning(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Retrying (")


def is_passing(error: Exception) -> bool:
    """Errors of the wire, and answers that another try may change."""
    status = api_status(error)
    return status in _PASSING_STATUSES if status is not None else isinstance(error, _wire_errors())


def api_status(error: Exception) -> int | None:
    """The HTTP status of either client's ApiException."""
    status = getattr(error, "status", None)
    return int(status) if status else None


def describe_api_error(error: Exception) -> str:
    """The server's own message, without headers: `403: pods is forbidden`."""
    body = getattr(error, "body", None)
    try:
        message = json.loads(body or "")["message"]
    except (ValueError, KeyError, TypeError):
        message = getattr(error, "reason", None) or str(error) or type(error).__name__
    status = api_status(error)
    return f"{status}: {message}" if status else str(message)


def _wire_errors() -> tuple[type[Exception], ...]:
    import aiohttp
    import urllib3.exceptions
    from airflow.providers.cncf.kubernetes.exceptions import KubernetesApiError
    from airflow.providers.cncf.kubernetes.kubernetes_helper_functions import KubernetesApiException

    return (
        urllib3.exceptions.HTTPError,
        aiohttp.ClientError,
        KubernetesApiError,
        KubernetesApiException,
        OSError,
        TimeoutError,
    )
