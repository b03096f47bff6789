"""How far a triggerer has read a pod's log, kept on the pod, so that the next one neither repeats nor skips a line."""

from __future__ import annotations

import time
from typing import Any

from airflow_provider_sft.api_patience import describe_api_error
from airflow_provider_sft.log_stamp import to_utc
from airflow_provider_sft.pod_outcome import Pod

BOOKMARK_ANNOTATION = "airflow-provider-sft/log-read-until"
_INTERVAL_S = 30.0  # what is told twice when a triggerer dies without a word


def read_bookmark(pod: Pod) -> str:
    """Empty where nobody has read yet."""
    return to_utc(str(pod["metadata"].get("annotations", {}).get(BOOKMARK_ANNOTATION, "")))


class Bookmark:
    """Nothing depends on it: without the right to patch pods, a new triggerer tells the log from its start."""

    def __init__(self, pod_name: str, namespace: str, log: Any) -> None:
        self._pod_name, self._namespace, self._log = pod_name, namespace, log
        self._saved, self._saved_at_s = "", time.monotonic()
        self._refused = False

    async def save_at_times(self, hook: Any, read_until: str) -> None:
        if time.monotonic() - self._saved_at_s >= _INTERVAL_S:
            await self.save(hook, read_until)

    async def save(self, hook: Any, read_until: str) -> None:
        from kubernetes_asyncio.client import CoreV1Api

        if self._refused or read_until == self._saved:
            return
        self._saved_at_s = time.monotonic()
        body = {"metadata": {"annotations": {BOOKMARK_ANNOTATION: read_until}}}
        try:
            async with hook.get_conn() as connection:
                await CoreV1Api(connection).patch_namespaced_pod(self._pod_name, self._namespace, body)
        except Exception as error:  # noqa: BLE001  # told once
            self._refused = True
            self._log.warning(
                "How far the log is read cannot be kept on the pod: %s", describe_api_error(error)
            )
        else:
            self._saved = read_until
