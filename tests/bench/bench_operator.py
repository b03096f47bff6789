"""What SFTTrainerOperator costs beside plain KubernetesPodOperator: import and pod build, interleaved; 100 mapped tasks.

Aims: + 30 ms for the import, + 0.5 ms for the pod.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

_IMPORTS = 7
_BUILDS = 300
_CONFIG = {
    "model_name_or_path": "/llama/13B",
    "training_data_path": "/data/twitter_complaints.json",
    "output_dir": "/output/llama-13b",
    "dataset_text_field": "output",
    "response_template": "\n### Label:",
}
_PLAIN = "from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator"
_OURS = "from airflow_provider_sft.operators import SFTTrainerOperator"


def main() -> None:
    os.environ.setdefault("AIRFLOW_HOME", tempfile.mkdtemp(prefix="airflow-"))
    os.environ["AIRFLOW__LOGGING__LOGGING_LEVEL"] = "WARNING"  # else both measure how a line is written
    compare("import", "s", measure_imports())
    compare("pod build", "ms", measure_builds())
    compare("100 mapped tasks: rendered and built", "ms", measure_mapped())


def compare(name: str, unit: str, pairs: list[tuple[float, float]]) -> None:
    plain = statistics.median(pair[0] for pair in pairs)
    ours = statistics.median(pair[1] for pair in pairs)
    difference = statistics.median(pair[1] - pair[0] for pair in pairs)
    print(f"{name:<40} plain {plain:8.3f} {unit}   ours {ours:8.3f} {unit}   {difference:+.3f} {unit}")


def measure_imports() -> list[tuple[float, float]]:
    return [(time_import(_PLAIN), time_import(_OURS)) for _ in range(_IMPORTS)]


def time_import(statement: str) -> float:
    code = f"import time; t = time.process_time(); {statement}; print(time.process_time() - t)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def measure_builds() -> list[tuple[float, float]]:
    plain, ours = make_plain(), make_ours()
    build = lambda operator: time_ms(lambda: operator.build_pod_request_obj(dry_run=True))  # noqa: E731
    build(plain), build(ours)
    return [(build(plain), build(ours)) for _ in range(_BUILDS)]


def make_plain():
    """The same pod by hand: what a user would write today."""
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
    from kubernetes.client import models as k8s

    from airflow_provider_sft.contract.codec import encode_config

    resources = k8s.V1ResourceRequirements(
        requests={"cpu": "5", "memory": "80Gi", "ephemeral-storage": "1600Gi"},
        limits={"cpu": "10", "memory": "200Gi", "ephemeral-storage": "2Ti", "nvidia.com/gpu": "2"},
    )
    claim = k8s.V1PersistentVolumeClaimVolumeSource(claim_name="output-pvc")
    return KubernetesPodOperator(
        task_id="tune",
        image="i",
        namespace="default",
        env_vars={"SFT_TRAINER_CONFIG_JSON_ENV_VAR": encode_config(_CONFIG)},
        container_resources=resources,
        volumes=[k8s.V1Volume(name="output", persistent_volume_claim=claim)],
        volume_mounts=[k8s.V1VolumeMount(name="output", mount_path="/output")],
        tolerations=[k8s.V1Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")],
    )


def make_ours():
    from airflow_provider_sft.operators import SFTTrainerOperator

    return SFTTrainerOperator(
        task_id="tune",
        image="i",
        namespace="default",
        config=_CONFIG,
        gpus=2,
        cpu="5/10",
        memory="80Gi/200Gi",
        ephemeral_storage="1600Gi/2Ti",
        volumes={"/output": "pvc:output-pvc"},
    )


def measure_mapped(tasks: int = 100, rounds: int = 3) -> list[tuple[float, float]]:
    return [(time_mapped(make_plain, tasks), time_mapped(make_ours, tasks)) for _ in range(rounds)]


def time_mapped(make: Callable[[], object], tasks: int) -> float:
    def run() -> None:
        for _ in range(tasks):
            operator = make()
            operator.render_template_fields({"run_id": "r", "params": {}})
            operator.build_pod_request_obj(dry_run=True)

    return time_ms(run)


def time_ms(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3


if __name__ == "__main__":
    main()
