"""TrainJob of Kubeflow Trainer 2: a runtime of our own holds the pod, the job names it.

The fields by which a TrainJob changes its runtime's pods are others in each minor version (podSpecOverrides,
podTemplateOverrides, runtimePatches). What is used here is the same in all of them.
"""

from __future__ import annotations

from airflow_provider_sft.engines.engine import Engine, Manifest
from airflow_provider_sft.engines.failure_policy import PERMANENT_CODES, jobset_failure_policy
from airflow_provider_sft.engines.jobset import NODE, build_node_job
from airflow_provider_sft.engines.plan import JobPlan

_RUNTIME = "TrainingRuntime"  # namespaced: nobody has to be the cluster's administrator


def build_trainjob(plan: JobPlan) -> list[Manifest]:
    """The environment stands in the runtime: a TrainJob whose `trainer.env` sets PET_* is refused."""
    spec = {
        "suspend": plan.is_queued,
        "runtimeRef": {"apiGroup": TRAINJOB.group, "kind": _RUNTIME, "name": plan.name},
        # A number, always: GPUs are counted by names that hold "gpu", which misses MIG and Gaudi.
        "trainer": {"numNodes": plan.num_nodes, "numProcPerNode": plan.processes_per_node},
    }
    job = {"apiVersion": TRAINJOB.api_version, "kind": TRAINJOB.kind, "metadata": plan.metadata, "spec": spec}
    return [_runtime(plan), job]


def _runtime(plan: JobPlan) -> Manifest:
    labels = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    node = {"metadata": {"labels": labels}, "spec": build_node_job(plan.pod_template(NODE))}
    jobset = {
        "ttlSecondsAfterFinished": plan.ttl_s,
        "failurePolicy": jobset_failure_policy(plan.max_restarts),
        "replicatedJobs": [{"name": NODE, "template": node}],
    }
    labels = {**plan.pod["metadata"]["labels"], "trainer.kubeflow.org/framework": "torch"}
    return {
        "apiVersion": TRAINJOB.api_version,
        "kind": _RUNTIME,
        "metadata": {"name": plan.name, "namespace": plan.namespace, "labels": labels},
        "spec": {
            "mlPolicy": {"numNodes": plan.num_nodes, "torch": {}},
            "template": {"spec": jobset},
        },
    }


TRAINJOB = Engine(
    name="trainjob",
    group="trainer.kubeflow.org",
    version="v1alpha1",
    plural="trainjobs",
    kind="TrainJob",
    container=NODE,
    source="Kubeflow Trainer 2.0 or newer",
    build=build_trainjob,
    ends_at=PERMANENT_CODES,
    expires=False,
    select_pods=lambda job: f"jobset.sigs.k8s.io/jobset-name={job['metadata']['name']}",
)
