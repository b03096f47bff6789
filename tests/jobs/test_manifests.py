"""The manifests that would be sent: golden ones, the published models and schemas, and the rules that all of them keep."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api import models

from airflow_provider_sft.engines.failure_policy import PERMANENT_CODES
from airflow_provider_sft.engines.job_name import name_job
from airflow_provider_sft.engines.registry import ENGINES, choose_engine, find_engine
from airflow_provider_sft.failures import LaunchFailure
from airflow_provider_sft.operators.job import SFTJobOperator
from tests.operators.pod_security import find_violations
from tests.operators.task import make_context, make_operator, render
from tests.operators.test_pod import SEED_CONFIG

GOLDEN = Path(__file__).with_name("manifests")
SCHEMAS = Path(__file__).parents[3] / "shared" / "crds"
TWO_NODES = {
    "image": "sft-trainer:mytag",
    "config": {**SEED_CONFIG, "output_dir": "/data/output/run", "training_data_path": "/data/output/t.json"},
    "name": "sft-2x8",
    "num_nodes": 2,
    "gpus": 8,
    "cpu": "32",
    "memory": "400Gi/600Gi",
    "ephemeral_storage": "1600Gi/2Ti",
    "shm_size": "64Gi",
    "queue_name": "lq-trainer",
    "volumes": {"/data/output": "pvc:output-rwx-pvc"},
    "env_vars": {"NCCL_IB_HCA": "mlx5", "NCCL_DEBUG": "WARN"},
    "annotations": {"kueue.x-k8s.io/podset-preferred-topology": "cloud.provider.com/topology-rack"},
    "labels": {"kueue.x-k8s.io/priority-class": "low"},
}
ONE_NODE = {**TWO_NODES, "name": "sft-1x8", "num_nodes": 1}
engines = pytest.mark.parametrize("engine", ENGINES)
nodes = pytest.mark.parametrize("parameters", [ONE_NODE, TWO_NODES], ids=["1-node", "2-nodes"])


def make(**parameters) -> SFTJobOperator:
    operator = make_operator(SFTJobOperator, namespace="tuning", **parameters)
    operator.random_name_suffix = False
    return operator


def build(engine: str, context=None, **parameters) -> list[dict]:
    operator = make(**parameters)
    pod = operator.build_pod_request_obj(context, dry_run=True)
    pod.metadata.labels.pop("airflow_version")
    return operator.build_manifests(ENGINES[engine], pod)


def pod_templates(manifest: dict) -> list[dict]:
    """Every pod template in a manifest, wherever its engine keeps them."""
    if isinstance(manifest, list):
        return [found for each in manifest for found in pod_templates(each)]
    if not isinstance(manifest, dict):
        return []
    if "containers" in manifest.get("spec", {}):
        return [manifest]
    return [found for each in manifest.values() for found in pod_templates(each)]


def pod_template(manifests: list[dict]) -> dict:
    return pod_templates(manifests)[0]


def trainer(manifests: list[dict]) -> dict:
    return pod_template(manifests)["spec"]["containers"][0]


def env(manifests: list[dict]) -> dict[str, str]:
    return {each["name"]: each.get("value") for each in trainer(manifests)["env"]}


def schema(name: str) -> dict:
    path = SCHEMAS / f"{name}.schema.json"
    if not path.exists():
        pytest.skip(f"the published schema {path.name} is not beside the checkout")
    return json.loads(path.read_text())


@engines
def test_manifests_of_two_nodes_are_the_golden_ones(engine):
    path = GOLDEN / f"{engine}.yaml"
    assert build(engine, **TWO_NODES) == list(yaml.safe_load_all(path.read_text()))


@nodes
@pytest.mark.parametrize(
    ("engine", "kind", "name"),
    [
        ("pytorchjob", "PyTorchJob", "pytorchjobs_v1.9.4"),
        ("jobset", "JobSet", "jobsets_v0.12.0"),
        ("trainjob", "TrainJob", "trainjobs_v2.0.1"),
        ("trainjob", "TrainJob", "trainjobs_v2.3.0"),
        ("trainjob", "TrainingRuntime", "trainingruntimes_v2.3.0"),
    ],
)
def test_manifest_is_what_the_published_schema_takes(engine, kind, name, parameters):
    manifest = next(each for each in build(engine, **parameters) if each["kind"] == kind)
    jsonschema.validate(manifest, schema(name))


@nodes
@pytest.mark.parametrize(
    ("engine", "kind", "model"),
    [
        ("trainjob", "TrainJob", models.TrainerV1alpha1TrainJob),
        ("trainjob", "TrainingRuntime", models.TrainerV1alpha1TrainingRuntime),
        ("jobset", "JobSet", models.JobsetV1alpha2JobSet),
    ],
)
def test_manifest_survives_the_published_models(engine, kind, model, parameters):
    manifest = next(each for each in build(engine, **parameters) if each["kind"] == kind)
    assert model.from_dict(manifest).to_dict() == manifest


@nodes
@pytest.mark.parametrize("version", ["1.29", "1.33", "1.37"])
def test_job_and_service_are_valid(parameters, version):
    for manifest in build("job", **parameters):
        kubernetes_validate.validate(manifest, version, strict=True)


@engines
@nodes
def test_pods_of_every_engine_are_valid_and_restricted(engine, parameters):
    for template in pod_templates(build(engine, **parameters)):
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        kubernetes_validate.validate(pod, "1.33", strict=True)
        assert find_violations(pod) == []


@engines
@nodes
def test_kueue_finds_its_labels_on_the_job_and_topology_on_the_pods(engine, parameters):
    manifests = build(engine, **parameters)
    labels = manifests[-1]["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "lq-trainer"
    assert labels["kueue.x-k8s.io/priority-class"] == "low"
    metadata = pod_template(manifests)["metadata"]
    assert not any(key.startswith("kueue.x-k8s.io/") for key in metadata["labels"])
    assert metadata["annotations"]["kueue.x-k8s.io/podset-preferred-topology"].endswith("topology-rack")


@engines
def test_queued_job_begins_suspended_and_another_does_not(engine):
    def suspended(manifest):
        return manifest["spec"].get("runPolicy", manifest["spec"])["suspend"]

    assert suspended(build(engine, **TWO_NODES)[-1]) is True
    assert suspended(build(engine, **{**TWO_NODES, "queue_name": None})[-1]) is False


@engines
def test_every_limit_is_requested_because_kueue_counts_requests(engine):
    resources = trainer(build(engine, **TWO_NODES))["resources"]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == "8"
    assert resources["limits"].keys() == resources["requests"].keys()


@engines
def test_nodes_share_memory_and_take_the_users_nccl_settings(engine):
    manifests = build(engine, **TWO_NODES)
    volumes = {volume["name"]: volume for volume in pod_template(manifests)["spec"]["volumes"]}
    assert volumes["sft-shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Gi"}
    assert (env(manifests)["NCCL_IB_HCA"], env(manifests)["NCCL_DEBUG"]) == ("mlx5", "WARN")


@engines
def test_rdma_resources_pass_through(engine):
    from kubernetes.client import models as k8s

    resources = k8s.V1ResourceRequirements(limits={"rdma/hca": "1"})
    limits = trainer(build(engine, **TWO_NODES, container_resources=resources))["resources"]["limits"]
    assert (limits["rdma/hca"], limits["nvidia.com/gpu"]) == ("1", "8")


@pytest.mark.parametrize("engine", ["jobset", "job"])
def test_nodes_learn_their_rank_from_the_completion_index(engine):
    manifests = build(engine, **TWO_NODES)
    rank = next(each for each in trainer(manifests)["env"] if each["name"] == "PET_NODE_RANK")
    assert "job-completion-index" in rank["valueFrom"]["fieldRef"]["fieldPath"]
    address = {"jobset": "sft-2x8-node-0-0.sft-2x8", "job": "sft-2x8-0.sft-2x8"}[engine]
    assert env(manifests)["PET_MASTER_ADDR"] == address
    assert (env(manifests)["PET_NNODES"], env(manifests)["PET_NPROC_PER_NODE"]) == ("2", "8")


def test_one_node_in_a_job_is_not_told_of_others():
    manifests = build("job", **ONE_NODE)
    assert len(manifests) == 1
    assert not any(name.startswith("PET_") for name in env(manifests))


def test_trainjob_sets_no_environment_and_a_whole_number_of_processes():
    runtime, job = build("trainjob", **TWO_NODES, gpu_resource="nvidia.com/mig-1g.10gb")
    assert job["spec"]["trainer"] == {"numNodes": 2, "numProcPerNode": 8}
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    assert not any(name.startswith("PET_") for name in env([runtime]))


@pytest.mark.parametrize("engine", ["job", "jobset", "trainjob"])
def test_permanent_codes_end_the_job_and_disruptions_do_not_count(engine):
    def rules(value):
        if isinstance(value, dict):
            found = value.get("podFailurePolicy", {}).get("rules", [])
            return found or [rule for each in value.values() for rule in rules(each)]
        return [rule for each in value for rule in rules(each)] if isinstance(value, list) else []

    disruption, codes = rules(build(engine, **TWO_NODES))
    assert disruption["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert disruption["action"] == ("Ignore" if engine == "job" else "FailJob")
    assert codes["action"] == "FailJob"
    assert codes["onExitCodes"]["values"] == PERMANENT_CODES
    assert {64, 65, 66, 68, 69, 77, 201, 202} <= set(PERMANENT_CODES)
    assert not {1, 2, 137, 143, 200, 203, 204, 205, 206, 207, 208} & set(PERMANENT_CODES)


def test_pytorchjob_restarts_by_exit_code_and_never_where_no_restart_is_wanted():
    def policies(manifests):
        return {each["restartPolicy"] for each in manifests[-1]["spec"]["pytorchReplicaSpecs"].values()}

    assert policies(build("pytorchjob", **TWO_NODES)) == {"ExitCode"}
    assert policies(build("pytorchjob", **TWO_NODES, max_restarts=0)) == {"Never"}


@engines
def test_run_is_told_on_job_and_pods_and_a_retry_has_the_same(engine):
    operator = make(**TWO_NODES)
    context = make_context(operator)
    manifests = build(engine, context, **TWO_NODES)
    run_id = "tune_dag/manual__2026-01-01T00:00:00+00:00/tune"
    assert manifests[-1]["metadata"]["annotations"]["airflow-provider-sft/run-id"] == run_id
    assert env(manifests)["SFT_RUN_ID"] == run_id


def test_templates_reach_the_job():
    operator = make(**{**TWO_NODES, "num_nodes": "{{ 1 + 1 }}", "engine": "{{ 'job' }}set"})
    context = make_context(operator)
    render(operator, context)
    assert (operator.engine, operator.nodes_wanted) == ("jobset", 2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tune", "tune"),
        ("Group.tune_model", "group-tune-model"),
        ("13b", "sft-13b"),
        ("a" * 60, "a" * 33 + "-"),
    ],
)
def test_name_of_a_job_is_a_short_host_name(name, expected):
    named = name_job(name, room_for_suffix=False)
    assert named.startswith(expected)
    assert len(named) <= 40


def test_long_names_that_begin_alike_stay_apart():
    assert name_job("a" * 60 + "b", room_for_suffix=True) != name_job("a" * 60 + "c", room_for_suffix=True)


@pytest.mark.parametrize(
    ("num_nodes", "served", "expected"),
    [
        (1, {"job", "trainjob"}, "job"),
        (2, {"job", "pytorchjob", "jobset", "trainjob"}, "trainjob"),
        (2, {"job", "pytorchjob", "jobset"}, "jobset"),
        (2, {"job", "pytorchjob"}, "pytorchjob"),
    ],
)
def test_auto_takes_the_best_that_is_served(num_nodes, served, expected):
    assert choose_engine("auto", num_nodes=num_nodes, served=served).name == expected


def test_auto_with_nothing_but_jobs_says_what_to_install():
    with pytest.raises(LaunchFailure, match="Install Kubeflow Trainer .* or JobSet .*, or set engine='job'"):
        choose_engine("auto", num_nodes=2, served={"job"})


def test_engine_that_is_not_served_is_named_with_those_that_are():
    with pytest.raises(LaunchFailure, match="serves no TrainJob .* or set engine to 'job' or 'jobset'"):
        choose_engine("trainjob", num_nodes=2, served={"job", "jobset"})


def test_unknown_engine_is_refused_with_the_known_ones():
    with pytest.raises(LaunchFailure, match="engine is 'ray'. Give one of 'job', 'pytorchjob'"):
        find_engine("ray")


def test_num_nodes_that_is_no_number_is_refused():
    with pytest.raises(LaunchFailure, match="num_nodes is 'two'. Give a whole number."):
        build("job", **{**ONE_NODE, "num_nodes": "two"})
    with pytest.raises(LaunchFailure, match="num_nodes is 0. Give 1 or more."):
        build("job", **{**ONE_NODE, "num_nodes": 0})
