"""`podman kube play` of the very pod that SFTTrainerOperator builds, with its PVCs and the seed's ConfigMap."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from kubernetes.client import ApiClient

from airflow_provider_sft.operators import SFTTrainerOperator
from tests.image.podman import Podman

# The operator asks which cluster it would talk to; nothing answers here, and nothing is sent.
KUBECONFIG = """\
{apiVersion: v1, kind: Config, current-context: none, users: [],
 contexts: [{name: none, context: {cluster: none, user: none}}],
 clusters: [{name: none, cluster: {server: "http://127.0.0.1:9"}}]}
"""
pytestmark = [pytest.mark.image, pytest.mark.timeout(2400)]
CLAIMS = {"/model": "model-pvc", "/data": "input-pvc", "/output": "output-pvc"}


def build_pod(image: str, kubeconfig: Path) -> dict:
    """What the operator would send, as the API's JSON, without what a host without Kubernetes cannot give."""
    operator = SFTTrainerOperator(
        task_id="tune",
        name="sft-trainer-test",
        random_name_suffix=False,
        namespace="default",
        image=image,
        in_cluster=False,
        config_file=str(kubeconfig),
        gpus=1,
        cpu="1/2",
        memory="1Gi/4Gi",
        ephemeral_storage="1Gi",
        volumes={path: f"pvc:{claim}" for path, claim in CLAIMS.items()}
        | {"/config": "configmap:sft-trainer-config"},
        env_vars={"HF_HUB_OFFLINE": "1", "SFT_TRAINER_CONFIG_JSON_PATH": "/config/config.json"},
    )
    pod = ApiClient().sanitize_for_serialization(operator.build_pod_request_obj())
    container = pod["spec"]["containers"][0]
    assert container["resources"]["limits"].pop("nvidia.com/gpu") == "1"
    return pod


@pytest.fixture
def claims(podman: Podman, run_dir: Path, model_dir: Path):
    """A podman volume for each claim, with what a person would have put there."""
    paths = {}
    for path, claim in CLAIMS.items():
        podman("volume", "rm", "-f", claim, check=False)
        podman("volume", "create", claim)
        paths[path] = Path(podman("volume", "inspect", claim, "--format", "{{.Mountpoint}}").stdout.strip())
        paths[path].chmod(0o775)
    shutil.copytree(model_dir, paths["/model"], dirs_exist_ok=True)
    shutil.copy(run_dir / "data" / "twitter_complaints.json", paths["/data"])
    yield paths
    podman("volume", "rm", "-f", *CLAIMS.values())


def test_kube_play_of_the_operators_pod_ends_with_the_result_file(
    podman, image, claims, seed_config, run_dir
):
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "sft-trainer-config"},
        "data": {"config.json": json.dumps(seed_config)},
    }
    kubeconfig, manifest = run_dir / "kubeconfig", run_dir / "pod.yaml"
    kubeconfig.write_text(KUBECONFIG)
    manifest.write_text(yaml.safe_dump_all([config_map, build_pod(image, kubeconfig)]))
    try:
        podman("kube", "play", "--network", "none", str(manifest))
        name = podman("ps", "-a", "--filter", "pod=sft-trainer-test", "--format", "{{.Names}}").stdout.split()
        container = next(each for each in name if not each.endswith("-infra"))
        code = podman("wait", container).stdout.strip()
        assert code == "0", podman("logs", container).stderr[-4000:]
    finally:
        podman("kube", "down", str(manifest), check=False)
    result = json.loads((claims["/output"] / "llama-13b-ft-multigpu" / "result.json").read_text())
    assert (result["status"], result["steps"], result["model_kind"]) == ("succeeded", 8, "adapter")
