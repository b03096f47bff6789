"""Checkov on the pods that `sft-config pod` prints, beside docs/kubernetes.md: `python -m tools.checkov`.

Checkov's pins conflict with Airflow's: it lives in .cache/checkov.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs" / "kubernetes.md"
CONFIG = {
    "model_name_or_path": "/llama/13B",
    "training_data_path": "/data/twitter_complaints.json",
    "output_dir": "/output/llama-13b",
    "dataset_text_field": "output",
    "response_template": "\n### Label:",
}
# The seed's pod, and what comes of no options at all.
PODS = {
    "seed": [
        *("--image", "sft-trainer:mytag", "--gpus", "2", "--cpu", "5/10", "--memory", "80Gi/200Gi"),
        *(
            "--ephemeral-storage",
            "1600Gi/2Ti",
            "--grace-period",
            "30",
            "--volume",
            "/data/output=pvc:output-pvc",
        ),
        *("--volume", "/data/input=pvc:input-pvc", "--volume", "/config=configmap:sft-trainer-config"),
    ],
    "default": [],
}


def main() -> int:
    checkov = install()
    explained, failed = set(read_explained()), set()
    for name, options in PODS.items():
        found = check(checkov, print_pod(options))
        print(f"{name}: {', '.join(sorted(found))}")
        failed |= found
    print(
        f"not explained: {sorted(failed - explained)}; explained without need: {sorted(explained - failed)}"
    )
    return int(failed != explained)


def read_explained() -> list[str]:
    """The checks that docs/kubernetes.md says something about."""
    return re.findall(r"^\| (CKV\w+) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)


def install() -> Path:
    home = ROOT / ".cache" / "checkov"
    if not (home / "bin" / "checkov").exists():
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        subprocess.run([home / "bin" / "pip", "install", "-q", "checkov"], check=True)
    return home / "bin" / "checkov"


def print_pod(options: list[str]) -> str:
    command = [Path(sys.executable).with_name("sft-config"), "pod", "-", *options]
    done = subprocess.run(command, input=json.dumps(CONFIG), capture_output=True, text=True, check=True)
    return done.stdout


def check(checkov: Path, manifest: str) -> set[str]:
    """The checks that fail."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "pod.yaml"
        path.write_text(manifest)
        options = ["--framework", "kubernetes", "--skip-download", "--soft-fail", "-o", "json"]
        command = [checkov, "-f", str(path), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {failed["check_id"] for failed in json.loads(done.stdout)["results"]["failed_checks"]}


if __name__ == "__main__":
    raise SystemExit(main())
