"""A cluster that a KUBECONFIG leads to: a namespace and a claim of its own, model and data on the claim, and Airflow.

SFT_TEST_IMAGE is the trainer image. SFT_TEST_ROOT is where volumes are mounted in pods: any path on a real cluster; on
the server of tests/kube, whose pods are processes, a directory that it may write to.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes import client, config

from airflow_provider_sft.operators import SFTTrainerOperator
from airflow_provider_sft.pod_outcome import to_plain
from tests import tiny
from tests.kube.airflow_env import AirflowEnv, DagProcess, RunOutcome

CLAIM = "data"
PATIENCE_S = 600  # the first pod pulls the image and waits for its volume
_SMALL = {"cpu": "250m/2", "memory": "512Mi/3Gi", "ephemeral_storage": "1Gi/4Gi", "shm_size": "64Mi"}
_RUN_ID = "airflow-provider-sft/run-id"
_MAKE = (
    "import sys; sys.path.insert(0, {tiny!r}); from pathlib import Path; import tiny; at = Path({data!r}); \
tiny.save_model(at / 'model'); tiny.write_tweets(at / 'tweets.jsonl')"
)
_SOURCE = """
from datetime import datetime, timezone
from airflow.providers.common.compat.sdk import DAG
from airflow_provider_sft.operators import SFTTrainerOperator

class TestOperator(SFTTrainerOperator):
    CONFIG_DIRECTORY = {config_directory!r}

with DAG("tune_dag", schedule=None, start_date=datetime(2026, 1, 1, tzinfo=timezone.utc)):
    TestOperator(task_id="tune", **{parameters!r})
"""


@dataclass
class Cluster:
    """:param root: where volumes are mounted"""

    kubeconfig: Path
    image: str
    root: str
    namespace: str
    airflow: AirflowEnv

    def __post_init__(self) -> None:
        configuration = client.Configuration()
        self.core = client.CoreV1Api(
            config.new_client_from_config(str(self.kubeconfig), client_configuration=configuration)
        )

    @property
    def data(self) -> str:
        return f"{self.root}/data"

    def furnish(self) -> None:
        """The namespace takes pods of the standard "restricted" alone."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.core.create_namespace({"metadata": {"name": self.namespace, "labels": labels}})
        storage = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        self.core.create_namespaced_persistent_volume_claim(
            self.namespace, {"metadata": {"name": CLAIM}, "spec": storage}
        )
        self._await_service_account()
        self._make_model()

    def remove(self) -> None:
        self.core.delete_namespace(self.namespace)

    def start(self, config: dict[str, Any], *, deferrable: bool, **parameters: Any) -> DagProcess:
        """A DAG run of one task; its pods stay, so that they can be counted."""
        source = _SOURCE.format(
            config_directory=f"{self.root}/config",
            parameters={
                **self._parameters(),
                "config": config,
                "deferrable": deferrable,
                "poll_interval": 1,
                "on_finish_action": "keep_pod",
                "retry_delay": 0.1,
                **parameters,
            },
        )
        extra = {"kube_config_path": str(self.kubeconfig), "namespace": self.namespace}
        connection = json.dumps({"conn_type": "kubernetes", "extra": extra})
        return self.airflow.start_dag(source, "tune_dag", env={"AIRFLOW_CONN_KUBERNETES_DEFAULT": connection})

    def pods_of(self, outcome: RunOutcome) -> list[dict[str, Any]]:
        """Those that still exist."""
        return self._pods(lambda run_id: run_id.startswith(f"tune_dag/{outcome.run_id}/"))

    def running_pod(self) -> str:
        """The name of the one that runs."""
        [pod] = [pod for pod in self._pods(bool) if pod["status"].get("phase") == "Running"]
        return str(pod["metadata"]["name"])

    def evict(self, name: str) -> None:
        metadata = {"name": name, "namespace": self.namespace}
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
        self.core.create_namespaced_pod_eviction(name, self.namespace, body)

    def delete(self, name: str) -> None:
        self.core.delete_namespaced_pod(name, self.namespace)

    def advertise(self, resource: str, number: int | None) -> None:
        """Let every node have this many of a resource; None takes it away."""
        amount = None if number is None else str(number)
        status = {"capacity": {resource: amount}, "allocatable": {resource: amount}}
        for node in self.core.list_node().items:
            self.core.patch_node_status(node.metadata.name, {"status": status})

    def _pods(self, wanted: Callable[[str], bool]) -> list[dict[str, Any]]:
        pods = [to_plain(pod) for pod in self.core.list_namespaced_pod(self.namespace).items]
        return [pod for pod in pods if wanted(pod["metadata"].get("annotations", {}).get(_RUN_ID, ""))]

    def _parameters(self) -> dict[str, Any]:
        return {
            "image": self.image,
            "gpus": 0,
            **_SMALL,
            "volumes": {self.data: f"pvc:{CLAIM}"},
            "security_context": {"fsGroup": 10001},
            "env_vars": {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        }

    def _await_service_account(self) -> None:
        """Without it no pod is admitted; a controller makes it a moment after the namespace."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if self.core.list_namespaced_service_account(self.namespace).items:
                return
            time.sleep(0.1)
        raise TimeoutError(
            f"Namespace {self.namespace} got no service account. Look at the cluster's controllers."
        )

    def _make_model(self) -> None:
        """The tests' tiny model and data, made by the trainer image itself on the claim."""
        text = Path(tiny.__file__).read_text(encoding="utf-8")
        self.core.create_namespaced_config_map(
            self.namespace, {"metadata": {"name": "tiny"}, "data": {"tiny.py": text}}
        )
        parameters = self._parameters()
        parameters["volumes"] = {**parameters["volumes"], f"{self.root}/tiny": "configmap:tiny"}
        code = _MAKE.format(tiny=f"{self.root}/tiny", data=self.data)
        operator = SFTTrainerOperator(
            task_id="make", namespace=self.namespace, cmds=["python3", "-c", code], **parameters
        )
        pod = to_plain(operator.build_pod_request_obj(dry_run=True))
        self.core.create_namespaced_pod(self.namespace, pod)
        self._await_success(pod["metadata"]["name"])

    def _await_success(self, name: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            pod = self.core.read_namespaced_pod(name, self.namespace)
            if pod.status.phase == "Succeeded":
                return
            if pod.status.phase == "Failed":
                raise RuntimeError(
                    f"No model: {self.core.read_namespaced_pod_log(name, self.namespace)[-3000:]}"
                )
            time.sleep(0.5)
        raise TimeoutError(f"Pod {name} did not end in {PATIENCE_S} s: {pod.status}")
