"""The provider on another Airflow: `python -m tools.compat 2.11.2` makes an environment for it and runs the unit tests.

The environment stays in .cache/airflow-VERSION. What needs the newest Airflow (whole DAG runs) is not run here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = ("pod", "config_field", "local", "links", "forms", "sweep", "pod_log", "sizing", "compat")
PACKAGES = (
    "apache-airflow-providers-cncf-kubernetes",
    "apache-airflow-providers-common-compat",
    *("jsonschema", "pytest", "pytest-timeout", "kubernetes-validate", "filelock", "aiohttp"),
)


def main(argv: list[str]) -> int:
    version = argv[0] if argv else "2.11.2"
    home = ROOT / ".cache" / f"airflow-{version}"
    python = home / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        subprocess.run(
            [python, "-m", "pip", "install", "-q", f"apache-airflow=={version}", *PACKAGES], check=True
        )
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "AIRFLOW_HOME": str(home / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    }
    subprocess.run([python, "-m", "airflow", "db", "migrate"], env=env, check=True, capture_output=True)
    tests = [f"tests/operators/test_{name}.py" for name in TESTS]
    command = [python, "-m", "pytest", "-q", "-o", "addopts=--import-mode=importlib", *tests]
    return subprocess.run(command, env=env, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
