"""PyTorchJob of the Kubeflow training operator 1.9: a master, and workers that are the same pod."""

from __future__ import annotations

from airflow_provider_sft.engines.engine import Engine, Manifest
from airflow_provider_sft.engines.plan import JobPlan

_CONTAINER = "pytorch"  # the operator looks for this name
_PERMANENT = range(1, 128)  # its ExitCode policy restarts on all others, 201 and 202 among them


def build_pytorchjob(plan: JobPlan) -> list[Manifest]:
    replicas = {"Master": _replica(plan, 1)}
    if plan.num_nodes > 1:
        replicas["Worker"] = _replica(plan, plan.num_nodes - 1)
    run_policy = {
        "suspend": plan.is_queued,
        "cleanPodPolicy": "None",  # log and result are read from the master's pod
        "ttlSecondsAfterFinished": plan.ttl_s,
        "backoffLimit": plan.max_restarts,
    }
    spec = {
        "nprocPerNode": str(plan.processes_per_node),
        "runPolicy": run_policy,
        "pytorchReplicaSpecs": replicas,
    }
    return [
        {
            "apiVersion": PYTORCHJOB.api_version,
            "kind": PYTORCHJOB.kind,
            "metadata": plan.metadata,
            "spec": spec,
        }
    ]


def _replica(plan: JobPlan, count: int) -> Manifest:
    template = plan.pod_template(_CONTAINER)
    template["spec"].pop("restartPolicy", None)  # the replica's own decides
    policy = "ExitCode" if plan.max_restarts else "Never"
    return {"replicas": count, "restartPolicy": policy, "template": template}


PYTORCHJOB = Engine(
    name="pytorchjob",
    group="kubeflow.org",
    version="v1",
    plural="pytorchjobs",
    kind="PyTorchJob",
    container=_CONTAINER,
    source="the Kubeflow training operator 1.9",
    build=build_pytorchjob,
    ends_at=_PERMANENT,
    expires=True,
    select_pods=lambda job: f"training.kubeflow.org/job-name={job['metadata']['name']}",
)
