"""What every engine makes a job of: the pod that SFTTrainerOperator builds, how often, and in which queue."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_sft.engines.engine import Manifest
from airflow_provider_sft.failures import LaunchFailure

# What belongs to the job and not to its pods: a pod that names a queue would be queued by itself.
_KUEUE_PREFIX = "kueue.x-k8s.io/"
_OWN_PREFIX = "airflow-provider-sft/"
_QUEUE_LABEL = f"{_KUEUE_PREFIX}queue-name"
MASTER_PORT = 29500


@dataclass(frozen=True)
class JobPlan:
    """
    :param labels: the job's; Kueue's are among them
    :param pod: `metadata` and `spec` of the pods, their trainer's container first
    :param max_restarts: of the whole job, by its engine, without an Airflow retry
    :param ttl_s: how long a finished job stays for reading
    """

    name: str
    namespace: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    pod: Manifest
    num_nodes: int
    processes_per_node: int
    max_restarts: int
    ttl_s: int

    @property
    def is_queued(self) -> bool:
        return _QUEUE_LABEL in self.labels

    @property
    def metadata(self) -> Manifest:
        identity = {"name": self.name, "namespace": self.namespace}
        told: Manifest = drop_empty({"labels": dict(self.labels), "annotations": dict(self.annotations)})
        return {**identity, **told}

    def pod_template(self, container_name: str, env: Sequence[Manifest] = ()) -> Manifest:
        """
        :param container_name: the name by which the engine knows the trainer's container
        :param env: what the pod's own environment does not set already
        """
        template = copy.deepcopy(self.pod)
        container = template["spec"]["containers"][0]
        container["name"] = container_name
        taken = {variable["name"] for variable in container.get("env", [])}
        added = [variable for variable in env if variable["name"] not in taken]
        container["env"] = [*container.get("env", []), *added]
        return template

    def node_env(self, master_address: str) -> list[Manifest]:
        """Which of how many nodes this is, where the engine numbers its pods and does not tell them."""
        index = {
            "fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
        }
        return [
            {"name": "PET_NNODES", "value": str(self.num_nodes)},
            {"name": "PET_NPROC_PER_NODE", "value": str(self.processes_per_node)},
            {"name": "PET_MASTER_ADDR", "value": master_address},
            {"name": "PET_MASTER_PORT", "value": str(MASTER_PORT)},
            {"name": "PET_NODE_RANK", "valueFrom": index},
        ]


def plan_job(
    pod: Manifest, *, container: str, num_nodes: int, gpus: int, max_restarts: int, ttl_s: int
) -> JobPlan:
    """
    :param pod: as SFTTrainerOperator builds it
    :param container: the trainer's in it
    :param gpus: of each node
    """
    if num_nodes < 1:
        raise LaunchFailure(f"num_nodes is {num_nodes}. Give 1 or more.")
    metadata = pod["metadata"]
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    template = {
        "metadata": {"labels": _without(labels, _KUEUE_PREFIX), "annotations": annotations},
        "spec": _arrange(pod["spec"], container),
    }
    return JobPlan(
        name=metadata["name"],
        namespace=metadata["namespace"],
        labels=labels,
        annotations={key: value for key, value in annotations.items() if key.startswith(_OWN_PREFIX)},
        pod=drop_empty(template),
        num_nodes=num_nodes,
        processes_per_node=gpus or 1,
        max_restarts=max_restarts,
        ttl_s=ttl_s,
    )


def drop_empty(value: Any) -> Any:
    """Without empty fields; `emptyDir: {}` says something."""
    if isinstance(value, list):
        return [drop_empty(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: drop_empty(each)
        for key, each in value.items()
        if each not in ({}, [], None) or key == "emptyDir"
    }


def _without(labels: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {key: value for key, value in labels.items() if not key.startswith(prefix)}


def _arrange(spec: Manifest, container: str) -> Manifest:
    """The trainer's container first, and every limit a request too: in a template nobody fills that in, and Kueue counts requests."""
    containers = sorted(spec["containers"], key=lambda each: each["name"] != container)
    counted = [{**each, "resources": _request_all(each.get("resources") or {})} for each in containers]
    return {**spec, "containers": counted}


def _request_all(resources: Manifest) -> Manifest:
    limits = resources.get("limits") or {}
    return {**resources, "requests": {**limits, **(resources.get("requests") or {})}}
