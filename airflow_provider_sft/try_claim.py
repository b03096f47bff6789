"""Which try holds a pod or job. A worker that was cut off deletes nothing that a later try has taken over."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_sft.api_patience import api_status, describe_api_error
from airflow_provider_sft.api_stream import fetch, send

CLAIM_ANNOTATION = "airflow-provider-sft/claimed-by"
# The status of a pod changes while it is read and deleted; a claim hardly ever does.
_TRIES = 5
_NOT_FOUND, _CONFLICT = 404, 409


def new_claim() -> str:
    return uuid.uuid4().hex


def claim_patch(claim: str) -> dict[str, Any]:
    return {"metadata": {"annotations": {CLAIM_ANNOTATION: claim}}}


def is_held_by_another(metadata: Mapping[str, Any], claim: str) -> bool:
    """:param claim: empty for a task that an older version deferred; it holds whatever it follows"""
    holder = (metadata.get("annotations") or {}).get(CLAIM_ANNOTATION)
    return bool(claim and holder) and holder != claim


@dataclass(frozen=True)
class Deletion:
    """Of a pod or job with this uid, while this try holds it."""

    uid: str
    claim: str
    log: Any
    grace_s: int | None = None
    foreground: bool = False

    def run(self, read: Callable[[], Any], delete: Callable[[dict[str, Any]], Any]) -> bool:
        """
        :param read: gives the object's metadata
        :param delete: takes the API's DeleteOptions
        :returns: False where a later try has taken it over
        """
        for tries_left in reversed(range(_TRIES)):
            metadata = read()
            if not self._is_ours(metadata):
                return bool(metadata["uid"] != self.uid)
            try:
                delete(self._options(metadata, any_version=not tries_left))
            except Exception as error:
                if api_status(error) != _CONFLICT:
                    raise
            else:
                break
        return True

    async def run_async(self, hook: Any, path: str) -> None:
        """For the triggerer. What goes wrong is logged: nobody above can do more."""
        try:
            for tries_left in reversed(range(_TRIES)):
                metadata = (await fetch(hook, path))["metadata"]
                if not self._is_ours(metadata) or await self._send(
                    hook, path, self._options(metadata, any_version=not tries_left)
                ):
                    return
        except Exception as error:  # noqa: BLE001
            if api_status(error) != _NOT_FOUND:
                self.log.warning(
                    "%s cannot be deleted: %s", path.rpartition("/")[2], describe_api_error(error)
                )

    async def _send(self, hook: Any, path: str, options: dict[str, Any]) -> bool:
        try:
            await send(hook, "DELETE", path, options)
        except Exception as error:
            if api_status(error) != _CONFLICT:
                raise
            return False
        return True

    def _is_ours(self, metadata: Mapping[str, Any]) -> bool:
        if is_held_by_another(metadata, self.claim):
            self.log.info("A later try has taken over %s: it is left running.", metadata["name"])
            return False
        return bool(metadata["uid"] == self.uid)

    def _options(self, metadata: Mapping[str, Any], *, any_version: bool) -> dict[str, Any]:
        """For the object as it was read, unless `any_version`."""
        version = {} if any_version else {"resourceVersion": metadata["resourceVersion"]}
        return {
            "preconditions": {"uid": self.uid, **version},
            **({} if self.grace_s is None else {"gracePeriodSeconds": self.grace_s}),
            **({"propagationPolicy": "Foreground"} if self.foreground else {}),
        }
