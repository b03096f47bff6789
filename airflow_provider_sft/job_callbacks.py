"""KubernetesPodOperator's callbacks for the pods of a job, by a worker that follows the job itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator
from kubernetes.client import models as k8s

from airflow_provider_sft.engines.engine import Engine
from airflow_provider_sft.engines.nodes import rank_of
from airflow_provider_sft.pod_outcome import Pod, has_begun


class NodeCallbacks:
    """Tells of each pod of the first node once, and of each line that is followed.

    What a callback raises is kept in `error` and ends the calls: who follows the job goes on until it is asked.

    :param call_back: takes a callback's name and its arguments
    :param call_back_line: takes a line, with its time, container and pod
    """

    def __init__(
        self, engine: Engine, call_back: Callable[..., None], call_back_line: Callable[..., None]
    ) -> None:
        self.error: Exception | None = None
        self._container, self._call_back, self._call_back_line = engine.container, call_back, call_back_line
        self._told: set[tuple[str, str]] = set()
        self._models: dict[str, k8s.V1Pod] = {}

    def see(self, pods: Iterable[Pod]) -> None:
        for pod in pods:
            if rank_of(pod) == 0:
                self._tell_once("on_pod_creation", pod)
                if has_begun(pod, self._container):
                    self._tell_once("on_pod_starting", pod)

    def take_line(self, pod: Pod, stamp: str, line: str) -> None:
        uid = pod["metadata"]["uid"]
        model = self._models.get(uid) or self._models.setdefault(uid, to_model(pod))
        self._keep_error(self._call_back_line, line, stamp=stamp, container=self._container, pod=model)

    def _tell_once(self, name: str, pod: Pod) -> None:
        if (told := (name, pod["metadata"]["uid"])) not in self._told:
            self._told.add(told)
            self._keep_error(self._call_back, name, pod=to_model(pod))

    def _keep_error(self, work: Callable[..., None], *arguments: Any, **options: Any) -> None:
        if self.error is None:
            try:
                work(*arguments, **options)
            except Exception as error:  # noqa: BLE001  # raised again where the task ends
                self.error = error


def to_model(pod: Pod) -> k8s.V1Pod:
    """What a callback is given."""
    return PodGenerator.deserialize_model_dict(pod)
