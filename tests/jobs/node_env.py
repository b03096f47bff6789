"""What a node's container finds in its environment: the manifest's, and what the engine's controller adds to it."""

from __future__ import annotations

from typing import Any

from tests.jobs.test_manifests import build, trainer

_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def node_env(engine: str, rank: int, **parameters: Any) -> dict[str, str]:
    manifests = build(engine, **parameters)
    told = {each["name"]: _value(each, rank) for each in trainer(manifests)["env"]}
    return told | _INJECTED[engine](manifests[-1], rank)


def _value(variable: dict[str, Any], rank: int) -> str:
    if "value" in variable:
        return str(variable["value"])
    assert variable["valueFrom"]["fieldRef"]["fieldPath"] == _INDEX
    return str(rank)


def _of_trainjob(job: dict[str, Any], rank: int) -> dict[str, str]:
    """The torch plugin of Kubeflow Trainer 2.0 to 2.3; the rank is the completion index of the pod's annotation."""
    name, told = job["metadata"]["name"], job["spec"]["trainer"]
    return {
        "PET_NNODES": str(told["numNodes"]),
        "PET_NPROC_PER_NODE": str(told["numProcPerNode"]),
        "PET_NODE_RANK": str(rank),
        "PET_MASTER_ADDR": f"{name}-node-0-0.{name}",
        "PET_MASTER_PORT": "29500",
    }


def _of_pytorchjob(job: dict[str, Any], rank: int) -> dict[str, str]:
    """The training operator 1.9: WORLD_SIZE counts processes, PET_NNODES nodes."""
    per_node, replicas = job["spec"]["nprocPerNode"], job["spec"]["pytorchReplicaSpecs"]
    count = sum(replica["replicas"] for replica in replicas.values())
    master = {"ADDR": f"{job['metadata']['name']}-master-0", "PORT": "23456"}
    return {
        "PYTHONUNBUFFERED": "1",
        **{f"{prefix}MASTER_{key}": value for prefix in ("", "PET_") for key, value in master.items()},
        "WORLD_SIZE": str(count * int(per_node)),
        "RANK": str(rank),
        "PET_NPROC_PER_NODE": per_node,
        "PET_NODE_RANK": str(rank),
        "PET_NNODES": str(count),
    }


_INJECTED = {
    "job": lambda _job, _rank: {},
    "jobset": lambda _job, _rank: {},
    "trainjob": _of_trainjob,
    "pytorchjob": _of_pytorchjob,
}
