"""A pod over the API: patient, told by its uid, its request and environment in no message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import pendulum
from airflow.providers.cncf.kubernetes.callbacks import ExecutionMode
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from kubernetes.client import models as k8s

from airflow_provider_sft.api_patience import ApiAwayError, Patience, api_status, describe_api_error
from airflow_provider_sft.failures import TransientFailure
from airflow_provider_sft.pod_outcome import Pod, to_plain
from airflow_provider_sft.pod_watch import PodWatch
from airflow_provider_sft.try_claim import Deletion

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

T = TypeVar("T")

_FORBIDDEN, _NOT_FOUND = 403, 404
_DELETE_WITHIN_S = 30.0
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 10, 60


class PodAccess(KubernetesPodOperator):
    """KubernetesPodOperator's pod, `self.pod`, as a run of days has to treat it."""

    _claim = ""  # this try's, on the pod or job that it follows
    _is_taken_over = False
    _forbidden: frozenset[str] = frozenset()  # what the API said 403 to: told once, and not asked again

    def patiently(self, work: Callable[[], T]) -> T:
        """:raises TransientFailure: the API server is away for long; the pod lives on, and the retry finds it"""
        try:
            return Patience(self.log).insist(work, refresh=self._refresh_cached_properties)
        except ApiAwayError as error:
            raise TransientFailure(
                f"{error} The pod is left running, and the retry finds it again."
            ) from error

    def _refresh_cached_properties(self) -> None:
        for name in ("hook", "client", "pod_manager"):
            self.__dict__.pop(name, None)

    @property
    def _identity(self) -> k8s.V1ObjectMeta:
        if self.pod is None:
            raise RuntimeError("the pod is neither found nor created yet")
        return self.pod.metadata

    def _read(self) -> Pod | None:
        """The pod as it is, None when it, told by its uid, does not exist."""
        metadata = self._identity
        try:
            pod: Pod = to_plain(
                self.patiently(lambda: self.client.read_namespaced_pod(metadata.name, metadata.namespace))
            )
        except Exception as error:
            if api_status(error) == _NOT_FOUND:
                return None
            raise
        return pod if pod["metadata"].get("uid") == metadata.uid else None

    def _read_events(self) -> list[dict[str, Any]]:
        if "events" in self._forbidden:
            return []
        metadata = self._identity
        selector = f"involvedObject.name={metadata.name},involvedObject.uid={metadata.uid}"
        try:
            events = self.client.list_namespaced_event(metadata.namespace, field_selector=selector)
        except Exception as error:  # noqa: BLE001  # events explain; nothing depends on them
            self._note_refusal("events", error)
            return []
        return [to_plain(event) for event in events.items]

    def _read_log(self, watch: PodWatch, container: str, *, follow: bool = False) -> None:
        """What is new in it; to its last line, as the container writes it, where it is followed."""
        if "log" in self._forbidden:
            return
        since_seconds = watch.window(container).begin_read()
        stamped_lines = self._fetch_log(container, since_seconds, follow=follow)
        for line in self._as_far_as_it_comes(watch.take_log(container, stamped_lines)):
            stamp = watch.window(container).read_until
            self._call_back_line(line, stamp=stamp, container=container, pod=self.pod)

    def _fetch_log(self, container: str, since_seconds: int | None, *, follow: bool) -> Iterator[str]:
        metadata, silence_s = self._identity, (self.termination_grace_period or 0) if follow else 0
        response = self.client.read_namespaced_pod_log(
            metadata.name,
            metadata.namespace,
            container=container,
            timestamps=True,
            follow=follow,
            since_seconds=since_seconds,
            _preload_content=False,
            _request_timeout=(_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S + silence_s),
        )
        for line in response:
            yield line.decode(errors="replace").rstrip("\n")

    def _as_far_as_it_comes(self, lines: Iterator[str]) -> Iterator[str]:
        try:
            yield from lines
        except Exception as error:  # noqa: BLE001  # a lost log is no lost training
            self._note_refusal("log", error)

    def _note_refusal(self, what: str, error: Exception) -> None:
        self.log.warning("The pod's %s cannot be read: %s", what, describe_api_error(error))
        if api_status(error) == _FORBIDDEN:
            self._forbidden |= {what}

    def _delete(self, *, grace_s: int | None = None) -> None:
        """Unless a later try has taken the pod over."""
        try:
            Patience(self.log, _DELETE_WITHIN_S).insist(
                lambda: self._delete_if_held(grace_s), refresh=self._refresh_cached_properties
            )
        except Exception as error:  # noqa: BLE001  # the outcome counts more
            if api_status(error) != _NOT_FOUND:
                self.log.warning(
                    "Pod %s cannot be deleted: %s", self._identity.name, describe_api_error(error)
                )

    def _delete_if_held(self, grace_s: int | None) -> None:
        name, namespace = self._identity.name, self._identity.namespace
        deletion = Deletion(self._identity.uid, self._claim, self.log, grace_s)
        self._is_taken_over = not deletion.run(
            lambda: to_plain(self.client.read_namespaced_pod(name, namespace))["metadata"],
            lambda options: self.client.delete_namespaced_pod(name, namespace, body=options),
        )

    def _call_back_line(self, line: str, *, stamp: str, container: str, pod: k8s.V1Pod) -> None:
        """:param stamp: the line's time, in RFC 3339; empty where it has none"""
        if self.callbacks:
            timestamp = pendulum.parse(stamp) if stamp else None
            told = {"line": line, "container_name": container, "timestamp": timestamp, "pod": pod}
            self._call_back("progress_callback", None, **told)

    def _call_back(self, name: str, context: Context | None, **arguments: Any) -> None:
        told = {"client": self.client, "mode": ExecutionMode.SYNC, "operator": self, "context": context}
        for callback in self.callbacks:
            getattr(callback, name)(**told, **arguments)
