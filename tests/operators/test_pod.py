"""The pod that would be sent: golden manifests, and the rules that any pod of ours keeps."""

import json
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from kubernetes.client import models as k8s

from airflow_provider_sft.contract.codec import decode_text
from airflow_provider_sft.contract.names import CONFIG_ENV_VAR
from airflow_provider_sft.failures import LaunchFailure
from airflow_provider_sft.operators import SFTTrainerOperator
from airflow_provider_sft.pod_outcome import to_plain
from tests.operators.pod_security import find_violations
from tests.operators.task import make_context, make_operator, render

PODS = Path(__file__).with_name("pods")
SEED_CONFIG = {
    "accelerate_launch_args": {"main_process_port": 1234},
    "model_name_or_path": "/llama/13B",
    "training_data_path": "/data/twitter_complaints.json",
    "output_dir": "/output/llama-13b-ft-multigpu",
    "num_train_epochs": 5.0,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-5,
    "response_template": "\n### Label:",
    "dataset_text_field": "output",
}
SEED_POD = {
    "image": "sft-trainer:mytag",
    "config": SEED_CONFIG,
    "gpus": 2,
    "cpu": "5/10",
    "memory": "80Gi/200Gi",
    "ephemeral_storage": "1600Gi/2Ti",
    "volumes": {
        "/data/input": "pvc:input-pvc",
        "/data/output": "pvc:output-pvc",
        "/config": "configmap:sft-trainer-config",
    },
    "termination_grace_period": 30,
}
GOLDEN = {
    "seed": SEED_POD,
    "seed-by-path": {
        **SEED_POD,
        "config": None,
        "env_vars": {"SFT_TRAINER_CONFIG_JSON_PATH": "/config/config.json"},
    },
    "cpu-only": {"image": "sft-trainer:1", "config": SEED_CONFIG, "gpus": 0, "model_parameters": 1e8},
    "queued-mig": {
        "image": "sft-trainer:1",
        "config": {**SEED_CONFIG, "model_name_or_path": "org/model-7b", "peft_method": "lora"},
        "gpus": 1,
        "gpu_resource": "nvidia.com/mig-1g.10gb",
        "queue_name": "tuning",
        "secrets": {"HF_TOKEN": "hub/token"},
        "volumes": {
            "/output": "pvc:out",
            "/data": "pvc:in:ro",
            "/scratch": "emptydir:100Gi",
            "/keys": "secret:k",
        },
    },
}


def build(context=None, **parameters):
    operator = make_operator(SFTTrainerOperator, **{"namespace": "default", "name": "tune", **parameters})
    operator.random_name_suffix = False
    return to_plain(operator.build_pod_request_obj(context, dry_run=True))


def stable(pod):
    """Without what the Airflow version and unset lists bring in."""
    pod["metadata"]["labels"].pop("airflow_version")
    return pod


def base(pod):
    return pod["spec"]["containers"][0]


@pytest.mark.parametrize("name", GOLDEN)
def test_pod_is_the_golden_one(name):
    path = PODS / f"{name}.yaml"
    pod = stable(build(**GOLDEN[name]))
    assert pod == yaml.safe_load(path.read_text()), f"If this is meant: write it anew with {__file__}"


@pytest.mark.parametrize("name", GOLDEN)
def test_pod_is_valid(name):
    kubernetes_validate.validate(build(**GOLDEN[name]), "1.33", strict=True)


@pytest.mark.parametrize("name", GOLDEN)
def test_pod_meets_the_restricted_pod_security_standard(name):
    assert find_violations(build(**GOLDEN[name])) == []


def test_pod_of_a_second_build_is_the_same():
    operator = make_operator(SFTTrainerOperator, **SEED_POD, namespace="default", name="tune")
    operator.random_name_suffix = False
    first, second = (to_plain(operator.build_pod_request_obj(dry_run=True)) for _ in range(2))
    assert first == second


def test_pod_has_the_rendered_values():
    operator = make_operator(
        SFTTrainerOperator,
        image="i",
        namespace="default",
        config={**SEED_CONFIG, "output_dir": "/o/{{ run_id }}"},
        gpus="{{ 1 + 1 }}",
        memory="{{ 2 * 40 }}Gi",
        cpu="2",
        ephemeral_storage="9Gi",
        volumes={"/o": "pvc:{{ dag.dag_id }}"},
    )
    context = make_context(operator)
    pod = to_plain(render(operator, context).build_pod_request_obj(context, dry_run=True))
    assert base(pod)["resources"]["limits"] == {
        "cpu": "2",
        "memory": "80Gi",
        "ephemeral-storage": "9Gi",
        "nvidia.com/gpu": "2",
    }
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"] == {"claimName": "tune_dag"}


def test_key_of_a_newer_image_goes_through_unread_when_it_is_named():
    config = {**SEED_CONFIG, "of_tomorrow": {"a": 1}}
    operator = make_operator(
        SFTTrainerOperator, image="i", namespace="default", config=config, extra_config_keys=["of_tomorrow"]
    )
    pod = to_plain(operator.build_pod_request_obj(dry_run=True))
    [encoded] = [each["value"] for each in base(pod)["env"] if each["name"] == CONFIG_ENV_VAR]
    assert json.loads(decode_text(encoded)) == config


def test_pod_knows_its_run():
    operator = make_operator(SFTTrainerOperator, **SEED_POD, namespace="default")
    context = make_context(operator, map_index=2)
    pod = to_plain(operator.build_pod_request_obj(context, dry_run=True))
    run_id = "tune_dag/manual__2026-01-01T00:00:00+00:00/tune/2"
    assert {"name": "SFT_RUN_ID", "value": run_id} in base(pod)["env"]
    assert pod["metadata"]["annotations"]["airflow-provider-sft/run-id"] == run_id


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"gpus": 0}, None),
        ({"gpus": 4}, "4"),
        ({"gpus": 2, "gpu_resource": "amd.com/gpu"}, "2"),
        ({"gpus": 2, "gpu_resource": "nvidia.com/mig-1g.10gb"}, "1"),
        ({"gpus": 8, "gpu_resource": "aliyun.com/gpu-mem"}, "1"),
        ({"container_resources": k8s.V1ResourceRequirements(limits={"nvidia.com/gpu": "3"})}, "3"),
        ({"container_resources": k8s.V1ResourceRequirements(limits={"nvidia.com/gpu": 0})}, None),
        ({"gpus": 4, "env_vars": {"SFT_EXPECTED_GPUS": "1"}}, "1"),
    ],
)
def test_pod_knows_how_many_gpus_it_has_requested(parameters, expected):
    pod = build(image="i", config=SEED_CONFIG, **parameters)
    found = [each["value"] for each in base(pod)["env"] if each["name"] == "SFT_EXPECTED_GPUS"]
    assert found == ([] if expected is None else [expected])


def test_security_check_of_these_tests_finds_what_is_forbidden():
    bare = {
        "spec": {
            "hostNetwork": True,
            "containers": [{"name": "c"}],
            "volumes": [{"name": "v", "hostPath": {}}],
        }
    }
    assert find_violations(bare) == [
        "hostNetwork is set",
        "volume v is of a forbidden type",
        "c: allowPrivilegeEscalation is not false",
        "c: runAsNonRoot is not true",
        "c: it has no seccomp profile",
        "c: capabilities are not dropped",
    ]


OWN_POD = k8s.V1Pod(
    metadata=k8s.V1ObjectMeta(labels={"app.kubernetes.io/name": "mine"}),
    spec=k8s.V1PodSpec(
        security_context=k8s.V1PodSecurityContext(run_as_user=7),
        tolerations=[k8s.V1Toleration(key="mine", operator="Exists")],
        automount_service_account_token=True,
        volumes=[k8s.V1Volume(name="mine", empty_dir=k8s.V1EmptyDirVolumeSource())],
        containers=[
            k8s.V1Container(
                name="base",
                image_pull_policy="Always",
                env=[k8s.V1EnvVar(name="SFT_TRAINER_CONFIG_JSON_ENV_VAR", value="mine")],
                resources=k8s.V1ResourceRequirements(limits={"memory": "1Gi"}),
                security_context=k8s.V1SecurityContext(read_only_root_filesystem=False),
                volume_mounts=[k8s.V1VolumeMount(name="mine", mount_path="/dev/shm")],
            )
        ],
    ),
)


def assert_the_users_win(pod):
    container, context = base(pod), pod["spec"]["securityContext"]
    assert [v["value"] for v in container["env"] if v["name"].endswith("ENV_VAR")] == ["mine"]
    assert (container["resources"]["limits"]["memory"], container["imagePullPolicy"]) == ("1Gi", "Always")
    assert container["securityContext"]["readOnlyRootFilesystem"] is False
    assert [m["name"] for m in container["volumeMounts"] if m["mountPath"] == "/dev/shm"] == ["mine"]
    assert (context["runAsUser"], context["runAsNonRoot"]) == (7, True)
    assert pod["spec"]["automountServiceAccountToken"] is True
    assert {t["key"] for t in pod["spec"]["tolerations"]} == {"mine", "nvidia.com/gpu"}


def test_full_pod_spec_wins_over_our_defaults():
    pod = build(**SEED_POD, full_pod_spec=OWN_POD)
    assert_the_users_win(pod)
    assert pod["metadata"]["labels"]["app.kubernetes.io/name"] == "mine"


def test_pod_template_wins_over_our_defaults():
    assert_the_users_win(build(**SEED_POD, pod_template_dict=to_plain(OWN_POD)))


def test_parameters_of_the_parent_win_over_our_defaults():
    pod = build(
        **SEED_POD,
        env_vars={"SFT_TRAINER_CONFIG_JSON_ENV_VAR": "mine"},
        image_pull_policy="Always",
        automount_service_account_token=True,
        security_context={"runAsUser": 7},
        container_security_context=k8s.V1SecurityContext(read_only_root_filesystem=False),
        container_resources=k8s.V1ResourceRequirements(limits={"memory": "1Gi"}),
        tolerations=[k8s.V1Toleration(key="mine", operator="Exists")],
        volume_mounts=[k8s.V1VolumeMount(name="mine", mount_path="/dev/shm")],
    )
    assert_the_users_win(pod)


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"volumes": {"/data": "claim"}}, r"volumes\['/data'\] is 'claim'. Give an absolute path and one of"),
        ({"volumes": {"data": "pvc:claim"}}, r"volumes\['data'\]"),
        ({"secrets": {"HF_TOKEN": "hub"}}, r"secrets\['HF_TOKEN'\] is 'hub'. Give 'SECRET/KEY'"),
        ({"memory": "80Gi/"}, "memory is '80Gi/'. Give 'REQUEST/LIMIT'"),
        ({"gpus": "two"}, "gpus is 'two'. Give a whole number"),
    ],
)
def test_parameter_that_is_wrong_is_named_with_its_value(parameters, sentence):
    with pytest.raises(LaunchFailure, match=sentence):
        build(**{**SEED_POD, **parameters})


def write_golden():
    for name, parameters in GOLDEN.items():
        (PODS / f"{name}.yaml").write_text(yaml.safe_dump(stable(build(**parameters)), sort_keys=False))


if __name__ == "__main__":
    write_golden()
