"""JobSet: several nodes without Kubeflow. A lost node restarts all of them together, from the newest checkpoint."""

from __future__ import annotations

from airflow_provider_sft.engines.engine import Engine, Manifest
from airflow_provider_sft.engines.failure_policy import (
    PERMANENT_CODES,
    jobset_failure_policy,
    pod_failure_policy,
)
from airflow_provider_sft.engines.plan import MASTER_PORT, JobPlan

# Kubeflow's Trainer makes JobSets of the same names.
NODE = "node"


def build_jobset(plan: JobPlan) -> list[Manifest]:
    env = plan.node_env(f"{plan.name}-{NODE}-0-0.{plan.name}")
    job = build_node_job(plan.pod_template(NODE, env))
    container = job["template"]["spec"]["containers"][0]
    container["ports"] = [*container.get("ports", []), {"containerPort": MASTER_PORT, "protocol": "TCP"}]
    job |= {"parallelism": plan.num_nodes, "completions": plan.num_nodes, "completionMode": "Indexed"}
    spec = {
        "suspend": plan.is_queued,
        "ttlSecondsAfterFinished": plan.ttl_s,
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "successPolicy": {"operator": "All"},
        "failurePolicy": jobset_failure_policy(plan.max_restarts),
        "replicatedJobs": [{"name": NODE, "replicas": 1, "template": {"spec": job}}],
    }
    return [{"apiVersion": JOBSET.api_version, "kind": JOBSET.kind, "metadata": plan.metadata, "spec": spec}]


def build_node_job(template: Manifest) -> Manifest:
    """The spec of the Job in a JobSet: any failure ends it, and the set decides what then."""
    return {
        "backoffLimit": 0,
        "podFailurePolicy": pod_failure_policy(NODE, on_disruption="FailJob"),
        "template": template,
    }


JOBSET = Engine(
    name="jobset",
    group="jobset.x-k8s.io",
    version="v1alpha2",
    plural="jobsets",
    kind="JobSet",
    container=NODE,
    source="JobSet 0.8 or newer",
    build=build_jobset,
    ends_at=PERMANENT_CODES,
    expires=True,
    select_pods=lambda job: f"jobset.sigs.k8s.io/jobset-name={job['metadata']['name']}",
)
