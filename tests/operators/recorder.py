"""KubernetesPodOperator's callbacks, as a DAG of a test names them: each leaves a line in the task's log."""

from __future__ import annotations

import re
from typing import Any

from airflow.providers.cncf.kubernetes.callbacks import KubernetesPodOperatorCallback


class Recorder(KubernetesPodOperatorCallback):
    """Takes what Airflow documents, each argument by its name."""

    @staticmethod
    def on_pod_manifest_created(*, pod_request, client, mode, operator, context, **kwargs: Any) -> None:
        print(f"<<on_pod_manifest_created {context['ti'].task_id}>>", flush=True)

    @staticmethod
    def on_pod_creation(*, pod, client, mode, operator, context, **kwargs: Any) -> None:
        print(f"<<on_pod_creation {pod.metadata.name}>>", flush=True)

    @staticmethod
    def on_pod_starting(*, pod, client, mode, operator, context, **kwargs: Any) -> None:
        print(f"<<on_pod_starting {pod.metadata.name}>>", flush=True)

    @staticmethod
    def on_pod_completion(*, pod, client, mode, operator, context, **kwargs: Any) -> None:
        print(f"<<on_pod_completion {pod.metadata.name}>>", flush=True)

    @staticmethod
    def on_pod_teardown(*, pod, client, mode, operator, context, **kwargs: Any) -> None:
        print(f"<<on_pod_teardown {pod.metadata.name}>>", flush=True)

    @staticmethod
    def on_pod_cleanup(*, pod, client, mode, operator, context, **kwargs: Any) -> None:
        print(f"<<on_pod_cleanup {pod.metadata.name}>>", flush=True)

    @staticmethod
    def progress_callback(*, line, client, mode, container_name, timestamp, pod, **kwargs: Any) -> None:
        if "loading" in line:
            print(f"<<line {line} {container_name} {timestamp:%Y} {pod.metadata.name}>>", flush=True)


class Refuser(KubernetesPodOperatorCallback):
    @staticmethod
    def on_pod_starting(**kwargs: Any) -> None:
        raise ValueError("This callback has a bug.")


class Named:
    """A name that `repr` writes into a DAG's source as it is."""

    def __init__(self, expression: str) -> None:
        self._expression = expression

    def __repr__(self) -> str:
        return self._expression


RECORDER = Named(f"__import__({__name__!r}, fromlist=['x']).Recorder")
REFUSER = Named(f"__import__({__name__!r}, fromlist=['x']).Refuser")


def recorded(log: str) -> list[tuple[str, str]]:
    """What was called, and the last word of what it was told."""
    return [(found[0], found[1]) for found in re.findall(r"<<(\w+).* (\S+)>>", log)]
