"""`podman kube play` of what `sft-config pod` prints, as it is: the operator's pod, its PVCs and its ConfigMap."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

from tests.image.podman import Podman

pytestmark = [pytest.mark.image, pytest.mark.timeout(2400)]
CLAIMS = {"/model": "model-pvc", "/data": "input-pvc", "/output": "output-pvc"}


def write_manifest(config: dict, image: str, path: Path) -> None:
    """What `sft-config pod` prints: the very pod that the operator would send, and its ConfigMap."""
    options = ["--config-map", "--name", "sft-trainer-test", "--image", image, "--gpus", "0"]
    options += ["--cpu", "1/2", "--memory", "1Gi/4Gi", "--ephemeral-storage", "1Gi"]
    options += [f"--volume={path}=pvc:{claim}" for path, claim in CLAIMS.items()]
    command = [Path(sys.executable).with_name("sft-config"), "pod", "-", *options]
    path.write_bytes(
        subprocess.run(command, input=json.dumps(config).encode(), stdout=PIPE, check=True).stdout
    )


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
    manifest = run_dir / "pod.yaml"
    write_manifest(seed_config, image, manifest)
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
