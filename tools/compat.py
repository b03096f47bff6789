"""The provider on another Airflow: `python -m tools.compat 2.11.2` makes an environment for it and runs the tests there.

The environment stays in .cache/airflow-VERSION. More arguments go to pytest: `python -m tools.compat 2.11.2 tests/jobs`
runs these alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
UNITS = ("pod", "config_field", "local", "links", "forms", "sweep", "pod_log", "sizing", "compat")
# What trains needs torch, which is no matter of Airflow's.
TESTS = (
    *(f"tests/operators/test_{name}.py" for name in (*UNITS, "callbacks", "kubernetes_lives")),
    *("tests/jobs", "--ignore=tests/jobs/test_two_nodes.py"),
    "--deselect=tests/operators/test_local.py::test_local_worker_killed_after_its_task_was_told_to_end_costs_no_save",
)
PACKAGES = (
    "apache-airflow-providers-cncf-kubernetes",
    "apache-airflow-providers-common-compat",
    *(
        "jsonschema",
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
        "kubernetes-validate",
        "kubeflow-trainer-api",
    ),
    *("filelock", "aiohttp", "psutil"),
)


def main(argv: list[str]) -> int:
    version = argv[0] if argv else "2.11.2"
    home = ROOT / ".cache" / f"airflow-{version}"
    python = _install(home, [f"apache-airflow=={version}", *PACKAGES])
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "AIRFLOW_HOME": str(home / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
    subprocess.run([python, "-m", "airflow", "db", "migrate"], env=env, check=True, capture_output=True)
    options = ["-o", "addopts=--import-mode=importlib"]
    command = [python, "-m", "pytest", "-q", "-n", "2", *options, *(argv[1:] or TESTS)]
    return subprocess.run(command, env=env, cwd=ROOT, check=False).returncode


def _install(home: Path, packages: list[str]) -> Path:
    """The environment's Python. What it has is noted, so that a second call does nothing."""
    python, note = home / "bin" / "python", home / "packages.txt"
    wanted = "\n".join(packages)
    if not note.exists() or note.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
        site_packages = next(home.glob("lib/python*/site-packages"))
        (site_packages / "airflow-provider-sft.pth").write_text(f"{ROOT}\n")  # for what runs as a pod
        note.write_text(wanted)
    return python


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
