"""The example of fms-hf-tuning for the Kubeflow training operator and Kueue, field by field, by operator and command."""

from __future__ import annotations

import copy
import json

import yaml

from tests.jobs.test_cli_job import run_job
from tests.jobs.test_manifests import build

# examples/kfto-kueue-sft-trainer.yaml of fms-hf-tuning: what a bloom model is tuned with on two GPUs, and queued.
KFTO_CONFIG = {
    "model_name_or_path": "bigscience/bloom-560m",
    "training_data_path": "/data/twitter_complaints.json",
    "output_dir": "/data/output/tuning/bloom-twitter",
    "tokenizer_name_or_path": "bigscience/bloom",
    "num_train_epochs": 10.0,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4,
    "learning_rate": 1e-05,
    "response_template": "\n### Label:",
    "dataset_text_field": "output",
}
KFTO_AFFINITY = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [
                {
                    "matchExpressions": [
                        {
                            "key": "nvidia.com/gpu.product",
                            "operator": "In",
                            "values": ["NVIDIA-A100-SXM4-80GB"],
                        }
                    ]
                }
            ]
        }
    }
}
KFTO_JOB = {
    "apiVersion": "kubeflow.org/v1",
    "kind": "PyTorchJob",
    "metadata": {"name": "kfto-sft", "labels": {"kueue.x-k8s.io/queue-name": "lq-trainer"}},
    "spec": {
        "pytorchReplicaSpecs": {
            "Master": {
                "replicas": 1,
                "restartPolicy": "Never",
                "template": {
                    "spec": {
                        "affinity": KFTO_AFFINITY,
                        "containers": [
                            {
                                "name": "pytorch",
                                "image": "sft-trainer:mytag",
                                "imagePullPolicy": "IfNotPresent",
                                "env": [
                                    {
                                        "name": "SFT_TRAINER_CONFIG_JSON_PATH",
                                        "value": "/etc/config/config.json",
                                    }
                                ],
                                "volumeMounts": [
                                    {"mountPath": "/etc/config"},
                                    {"mountPath": "/data/models"},
                                    {"mountPath": "/data/input"},
                                    {"mountPath": "/data/output"},
                                ],
                                "resources": {
                                    "limits": {
                                        "nvidia.com/gpu": "2",
                                        "memory": "50Gi",
                                        "ephemeral-storage": "100Gi",
                                    }
                                },
                            }
                        ],
                        "imagePullSecrets": [{"name": "my-secret"}],
                        "volumes": [
                            {"persistentVolumeClaim": {"claimName": "model-pvc"}},
                            {"persistentVolumeClaim": {"claimName": "cos-input"}},
                            {"persistentVolumeClaim": {"claimName": "cos-output"}},
                            {
                                "configMap": {
                                    "name": "my-config",
                                    "items": [{"key": "config.json", "path": "config.json"}],
                                }
                            },
                        ],
                    }
                },
            }
        }
    },
}
KFTO_PARAMETERS = {
    "name": "kfto-sft",
    "image": "sft-trainer:mytag",
    "gpus": 2,
    "cpu": "10",
    "memory": "50Gi",
    "ephemeral_storage": "100Gi",
    "queue_name": "lq-trainer",
    "max_restarts": 0,
    "affinity": KFTO_AFFINITY,
}


def missing_fields(expected, found, path: str = "") -> list[str]:
    """The fields of `expected` that `found` lacks or has otherwise; list members are looked for in any order."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return [
            miss
            for key in expected
            for miss in missing_fields(expected[key], found.get(key), f"{path}.{key}")
        ]
    if isinstance(expected, list) and isinstance(found, list):
        return [
            f"{path}[{index}]"
            for index, each in enumerate(expected)
            if all(missing_fields(each, candidate) for candidate in found)
        ]
    return [] if expected == found else [f"{path}: {expected!r} is {found!r}"]


def kfto_volumes():
    """The volumes of the example as Kubernetes' own models: its ConfigMap names the item."""
    from kubernetes.client import models as k8s

    claims = {"models": "model-pvc", "input-data": "cos-input", "output-data": "cos-output"}
    volumes = [
        k8s.V1Volume(
            name=name,
            persistent_volume_claim=k8s.V1PersistentVolumeClaimVolumeSource(claim_name=claim),
        )
        for name, claim in claims.items()
    ]
    items = [k8s.V1KeyToPath(key="config.json", path="config.json")]
    source = k8s.V1ConfigMapVolumeSource(name="my-config", items=items)
    paths = {
        "/etc/config": "config-volume",
        "/data/models": "models",
        "/data/input": "input-data",
        "/data/output": "output-data",
    }
    mounts = [k8s.V1VolumeMount(name=name, mount_path=path) for path, name in paths.items()]
    return [*volumes, k8s.V1Volume(name="config-volume", config_map=source)], mounts


def test_pytorchjob_reproduces_the_kfto_example_field_by_field():
    from kubernetes.client import models as k8s

    volumes, mounts = kfto_volumes()
    (job,) = build(
        "pytorchjob",
        **KFTO_PARAMETERS,
        env_vars={"SFT_TRAINER_CONFIG_JSON_PATH": "/etc/config/config.json"},
        volumes=volumes,
        volume_mounts=mounts,
        image_pull_secrets=[k8s.V1LocalObjectReference(name="my-secret")],
    )
    assert missing_fields(KFTO_JOB, job) == []


def test_job_command_prints_the_kfto_example_and_its_config_map():
    affinity = ["--name", "kfto-sft", "--image", "sft-trainer:mytag", "--gpus", "2", "--config-map"]
    sizes = ["--cpu", "10", "--memory", "50Gi", "--ephemeral-storage", "100Gi", "--max-restarts", "0"]
    volumes = {"/data/models": "model-pvc", "/data/input": "cos-input", "/data/output": "cos-output"}
    mounts = [f"--volume={path}=pvc:{claim}" for path, claim in volumes.items()]
    queue = ["--engine", "pytorchjob", "--queue-name", "lq-trainer"]
    done = run_job(KFTO_CONFIG, *affinity, *sizes, *mounts, *queue)
    config_map, job = yaml.safe_load_all(done.stdout)
    assert (config_map["kind"], json.loads(config_map["data"]["config.json"])) == ("ConfigMap", KFTO_CONFIG)
    spec = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    assert spec["volumes"][-1]["configMap"]["name"] == config_map["metadata"]["name"] == "kfto-sft-config"
    spec.pop("volumes")
    expected = copy.deepcopy(KFTO_JOB)
    wanted = expected["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    for elsewhere in (
        "affinity",
        "imagePullSecrets",
        "volumes",
    ):  # the command has no options for the first two
        wanted.pop(elsewhere)
    wanted["containers"][0]["env"][0]["value"] = "/etc/sft-config/config.json"
    wanted["containers"][0]["volumeMounts"][0]["mountPath"] = "/etc/sft-config"
    assert missing_fields(expected, job) == []
