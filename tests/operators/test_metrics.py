"""Through Airflow's own StatsD client, a process set up as a task's is."""

import contextlib
import os
import socket
import subprocess
import sys

import pytest

PROGRAM = """
from airflow.sdk.execution_time.task_runner import stats, stats_utils
stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=True)
from airflow_provider_sft.metrics import emit_end
from airflow_provider_sft.progress_report import ProgressReport
import logging
report = ProgressReport(logging.getLogger(), tags={"dag_id": "d", "task_id": "t"})
report.take('{"event":"progress","attempt":1,"step":5,"max_steps":9,"epoch":1.0,"loss":1.5,"tokens_per_s":812.0}')
emit_end("succeeded", {"gpu_s": 7200.0}, {"dag_id": "d", "task_id": "t"})
"""


@pytest.fixture(scope="module")
def metrics():
    """The datagrams of one run, a metric each."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.5)
        port = str(server.getsockname()[1])
        env = {
            "STATSD_ON": "True",
            "STATSD_HOST": "127.0.0.1",
            "STATSD_PORT": port,
            "STATSD_DATADOG_ENABLED": "False",
        }
        settings = {f"AIRFLOW__METRICS__{key}": value for key, value in env.items()}
        subprocess.run([sys.executable, "-c", PROGRAM], env={**os.environ, **settings}, check=True)
        received = []
        with contextlib.suppress(TimeoutError):
            while True:
                received.append(server.recv(65536).decode())
    return received


@pytest.mark.parametrize(
    "metric", ["airflow.sft.step:5|g", "airflow.sft.loss:1.5|g", "airflow.sft.tokens_per_s:812.0|g"]
)
def test_progress_is_a_gauge(metrics, metric):
    assert metric in metrics


def test_end_is_counted_and_its_gpu_hours_are_a_gauge(metrics):
    assert "airflow.sft.runs:1|c" in metrics
    assert "airflow.sft.gpu_hours:2.0|g" in metrics
