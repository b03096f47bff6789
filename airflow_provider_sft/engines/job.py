"""`batch/v1` Job: served by every cluster, and the best form for one queued node."""

from __future__ import annotations

from airflow_provider_sft.engines.engine import Engine, Manifest
from airflow_provider_sft.engines.failure_policy import PERMANENT_CODES, pod_failure_policy
from airflow_provider_sft.engines.plan import MASTER_PORT, JobPlan

_CONTAINER = "base"


def build_job(plan: JobPlan) -> list[Manifest]:
    spec = {
        "suspend": plan.is_queued,
        "parallelism": plan.num_nodes,
        "completions": plan.num_nodes,
        "completionMode": "Indexed",
        # A lost node takes the others along: each is counted.
        "backoffLimit": plan.max_restarts * plan.num_nodes,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": pod_failure_policy(_CONTAINER, on_disruption="Ignore"),
        "ttlSecondsAfterFinished": plan.ttl_s,
        "template": _template(plan),
    }
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": plan.metadata, "spec": spec}
    return [job] if plan.num_nodes == 1 else [_service(plan), job]


def _template(plan: JobPlan) -> Manifest:
    if plan.num_nodes == 1:
        return plan.pod_template(_CONTAINER)
    template = plan.pod_template(_CONTAINER, plan.node_env(f"{plan.name}-0.{plan.name}"))
    template["spec"]["subdomain"] = plan.name
    return template


def _service(plan: JobPlan) -> Manifest:
    """So that nodes find the first one by name, before it is ready."""
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"batch.kubernetes.io/job-name": plan.name},
        "ports": [{"name": "rendezvous", "port": MASTER_PORT, "protocol": "TCP"}],
    }
    return {"apiVersion": "v1", "kind": "Service", "metadata": plan.metadata, "spec": spec}


JOB = Engine(
    name="job",
    group="batch",
    version="v1",
    plural="jobs",
    kind="Job",
    container=_CONTAINER,
    source="Kubernetes itself",
    build=build_job,
    ends_at=PERMANENT_CODES,
    expires=True,
    select_pods=lambda job: f"batch.kubernetes.io/controller-uid={job['metadata']['uid']}",
)
