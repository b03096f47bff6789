"""Write down which fields releases of Kubeflow Trainer, and the JobSet that each brings along, know.

.venv/bin/python -m tools.trainer_models 2.0.0 2.1.0 2.2.0 2.3.0

From the published models (kubeflow-trainer-api), which pip fetches, to tests/jobs/published/VERSION.json: for each model
its fields, and the model of a field that has one. Pods are left out: Kubernetes' own schema checks them.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOTS = ("TrainerV1alpha1TrainJob", "TrainerV1alpha1TrainingRuntime", "JobsetV1alpha2JobSet")
PUBLISHED = Path(__file__).parents[1] / "tests" / "jobs" / "published"
_ELSEWHERE = ("IoK8sApiAutoscaling", "IoK8sApiCore", "IoK8sApimachinery")
_DUMP = "--dump"


def main(argv: Sequence[str]) -> int:
    if argv == [_DUMP]:
        lines = [f"{json.dumps(name)}: {json.dumps(fields)}" for name, fields in sorted(_read_models())]
        print("{", ",\n".join(lines), "}", sep="\n")
        return 0
    for version in argv:
        (PUBLISHED / f"{version}.json").write_text(_fetch(version), encoding="utf-8")
    return 0


def _fetch(version: str) -> str:
    with tempfile.TemporaryDirectory() as directory:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", directory]
        subprocess.run([*pip, f"kubeflow-trainer-api=={version}"], check=True)
        [wheel] = Path(directory).glob("*.whl")
        # Python imports from a wheel as it is; the path comes before what is installed.
        env = {**os.environ, "PYTHONPATH": str(wheel)}
        command = [sys.executable, "-P", __file__, _DUMP]
        return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout


def _read_models() -> Iterator[tuple[str, dict[str, str | None]]]:
    from kubeflow_trainer_api import models

    waiting, seen = list(ROOTS), set(ROOTS)
    while waiting:
        name = waiting.pop()
        fields = dict(sorted(_read_fields(vars(models)[name])))
        yield name, fields
        new = {kind for kind in fields.values() if kind} - seen
        waiting += new
        seen |= new


def _read_fields(model: Any) -> Iterator[tuple[str, str | None]]:
    """:param model: a pydantic class"""
    from kubeflow_trainer_api import models

    for name, field in model.model_fields.items():
        kinds = re.findall(r"\w+", str(field.annotation).replace(".", " "))
        known = [kind for kind in kinds if inspect.isclass(vars(models).get(kind))]
        own = next((kind for kind in known if not kind.startswith(_ELSEWHERE)), None)
        yield field.alias or name, own


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
