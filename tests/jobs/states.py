"""Jobs, Workloads and pods as clusters show them: the least that says it, in the API's JSON."""

from __future__ import annotations

from typing import Any

Manifest = dict[str, Any]

CONTAINERS = {"Job": "base", "JobSet": "node", "TrainJob": "node", "PyTorchJob": "pytorch"}
KINDS = list(CONTAINERS)


def job(kind: str, *conditions: Manifest, nodes: int = 2, suspend: bool = False, **status: Any) -> Manifest:
    spec: Manifest = {
        "Job": {"suspend": suspend, "parallelism": nodes},
        "JobSet": {
            "suspend": suspend,
            "replicatedJobs": [{"name": "node", "template": {"spec": {"parallelism": nodes}}}],
        },
        "TrainJob": {"suspend": suspend, "trainer": {"numNodes": nodes}},
        "PyTorchJob": {
            "runPolicy": {"suspend": suspend},
            "pytorchReplicaSpecs": {"Master": {"replicas": 1}, "Worker": {"replicas": nodes - 1}},
        },
    }[kind]
    metadata = {"name": "tune", "uid": "job-uid", "labels": {"kueue.x-k8s.io/queue-name": "lq"}}
    return {
        "kind": kind,
        "metadata": metadata,
        "spec": spec,
        "status": {"conditions": list(conditions), **status},
    }


def is_so(kind: str, reason: str = "", message: str = "", *, status: str = "True") -> Manifest:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def workload(*conditions: Manifest, active: bool = True, **status: Any) -> Manifest:
    return {"spec": {"active": active}, "status": {"conditions": list(conditions), **status}}


def pod(kind: str, rank: int = 0, *, attempt: int = 0, **told: Any) -> Manifest:
    """:param told: `waiting`, `running`, `code` with `message` and `finished`, `leaving`, `unschedulable`, `reason`"""
    labels = {"batch.kubernetes.io/job-completion-index": str(rank)}
    if kind == "PyTorchJob":
        replica = {"replica-type": "worker" if rank else "master", "replica-index": str(max(rank - 1, 0))}
        labels = {f"training.kubeflow.org/{key}": value for key, value in replica.items()}
    metadata = {
        "name": f"tune-{rank}-{attempt}",
        "labels": labels,
        "creationTimestamp": f"2026-01-01T00:0{attempt}:00Z",
    }
    if told.get("leaving"):
        metadata["deletionTimestamp"] = "2026-01-01T01:00:00Z"
    container = {"name": CONTAINERS[kind], "resources": {"limits": {"memory": "9Gi"}}}
    return {"metadata": metadata, "spec": {"containers": [container]}, "status": _pod_status(kind, told)}


def _pod_status(kind: str, told: Manifest) -> Manifest:
    if "unschedulable" in told:
        condition = is_so("PodScheduled", "Unschedulable", told["unschedulable"], status="False")
        return {"phase": "Pending", "conditions": [condition]}
    if "evicted" in told:
        return {"phase": "Failed", "reason": "Evicted", "message": told["evicted"]}
    state: Manifest = {"running": {"startedAt": "2026-01-01T00:00:30Z"}}
    phase = "Running"
    if "waiting" in told:
        state, phase = {"waiting": {"reason": told["waiting"]}}, "Pending"
    if "code" in told:
        ended = {"exitCode": told["code"], "message": told.get("message", "")}
        ended |= {
            "reason": told.get("reason", "Error"),
            "finishedAt": told.get("finished", "2026-01-01T00:05:00Z"),
        }
        state, phase = {"terminated": ended}, "Failed" if told["code"] else "Succeeded"
    conditions = [is_so("PodScheduled")]
    if "disruption" in told:
        conditions.append(is_so("DisruptionTarget", told["disruption"], "the node goes"))
    statuses = [{"name": CONTAINERS[kind], "state": state}]
    return {"phase": phase, "conditions": conditions, "containerStatuses": statuses}
