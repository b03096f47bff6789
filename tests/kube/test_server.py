"""The unmodified KubernetesPodOperator on the test server, through Airflow's own `dag.test()`, sync and deferrable.

That it succeeds and fails here as it does on a cluster is the proof that the server is honest.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.kube import faults
from tests.kube.airflow_env import AirflowEnv, DagProcess
from tests.kube.server import KubeServer

MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["sync", "deferrable"])
UNTIL_TERMINATED = (
    "trap 'echo saving; exit 206' TERM; echo first line; echo ready; while :; do sleep 0.02; done"
)
_SOURCE = """
from datetime import timedelta
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import DAG

with DAG("echo", schedule=None):
    KubernetesPodOperator(task_id="say", {parameters})
"""


@dataclass
class Echo:
    """Starts a DAG of one KubernetesPodOperator that runs a shell script."""

    kube: KubeServer
    airflow: AirflowEnv
    kubeconfig: Path

    def start(self, script: str, **parameters: Any) -> DagProcess:
        defaults: dict[str, Any] = {
            "name": "say",
            "namespace": "default",
            "image": "busybox",
            "cmds": ["sh", "-c"],
            "arguments": [script],
            "in_cluster": False,
            "startup_check_interval_seconds": 0.1,
            "poll_interval": 0.1,
            "termination_grace_period": 5,
        }
        text = ", ".join(f"{key}={value!r}" for key, value in {**defaults, **parameters}.items())
        extra = {"kube_config_path": str(self.kubeconfig)}
        connection = json.dumps({"conn_type": "kubernetes", "extra": extra})
        env = {"AIRFLOW_CONN_KUBERNETES_DEFAULT": connection}
        return self.airflow.start_dag(_SOURCE.format(parameters=text), "echo", env=env)


@pytest.fixture
def echo(kube: KubeServer, airflow: AirflowEnv, tmp_path: Path) -> Echo:
    return Echo(kube, airflow, tmp_path / "kubeconfig")


@MODES
def test_operator_runs_a_pod_logs_it_and_deletes_it(echo: Echo, kube: KubeServer, deferrable: bool) -> None:
    outcome = echo.start("echo hello from the pod; sleep 0.2; echo bye", deferrable=deferrable).wait()
    assert outcome.state == "success", outcome.log
    assert (
        outcome.log.count("hello from the pod")
        == outcome.log.count("] bye") + outcome.log.count("logs: bye")
        == 1
    )
    task = outcome.task("say")
    assert (task.state, task.xcoms["pod_name"]) == ("success", kube.created_pods[0]["metadata"]["name"])
    assert (len(kube.created_pods), len(kube.starts), kube.pods()) == (1, 1, [])


@MODES
def test_operator_fails_with_the_container_and_its_message(
    echo: Echo, kube: KubeServer, deferrable: bool
) -> None:
    script = "echo so it goes > $TERMINATION_LOG_FILE; exit 3"
    outcome = echo.start(
        script, deferrable=deferrable, on_finish_action="keep_pod", log_events_on_failure=True
    ).wait()
    assert outcome.task("say").state == "failed"
    assert re.search(r"Pod say-\w+ returned a failure.\s+so it goes", outcome.log)
    assert "state='TERMINATED', reason='Error', exit_code=3, message='so it goes" in outcome.log
    (kept,) = kube.pods()
    assert kept["metadata"]["labels"]["already_checked"] == "True"


@MODES
def test_operator_retries_in_the_same_run(
    echo: Echo, kube: KubeServer, tmp_path: Path, deferrable: bool
) -> None:
    script = f"test -e {tmp_path}/again || {{ touch {tmp_path}/again; exit 1; }}"
    outcome = echo.start(script, deferrable=deferrable, retries=1, retry_delay=0.1).wait()
    assert (outcome.task("say").state, outcome.task("say").try_number) == ("success", 2)
    assert len(kube.starts) == 2


@MODES
def test_operator_logs_the_scheduler_s_event_and_waits(echo: Echo, deferrable: bool) -> None:
    echo.kube.inject(faults.Unschedulable(for_s=0.6))
    outcome = echo.start("exit 0", deferrable=deferrable).wait()
    assert outcome.state == "success", outcome.log
    assert "Insufficient nvidia.com/gpu" in outcome.log


@MODES
def test_operator_gives_up_on_an_image_that_is_not_there(
    echo: Echo, kube: KubeServer, deferrable: bool
) -> None:
    outcome = echo.start("exit 0", deferrable=deferrable, image="nobody/nothing:1").wait()
    assert outcome.state == "failed"
    assert re.search("Image cannot be pulled, unable to start: (ErrImagePull|ImagePullBackOff)", outcome.log)
    assert kube.starts == []


@MODES
@pytest.mark.parametrize(
    "fault",
    [
        faults.HttpError(status=500, path="/pods", times=2),
        faults.HttpError(status=429, path="/pods/say", times=2, retry_after_s=0),
        faults.CutConnection(path="/pods/say", after_bytes=100, times=2),
        faults.SlowResponse(path="/pods", seconds=0.3, times=2),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_operator_survives_a_bad_moment_of_the_api(
    echo: Echo, kube: KubeServer, fault: Any, deferrable: bool
) -> None:
    kube.inject(fault)
    outcome = echo.start("echo hello", deferrable=deferrable).wait()
    assert outcome.state == "success", outcome.log
    assert len(kube.starts) == 1


def test_operator_follows_the_log_again_when_it_is_cut(echo: Echo, kube: KubeServer) -> None:
    kube.inject(faults.CutLog(after_lines=2))
    outcome = echo.start("for i in 1 2 3 4; do echo line $i; sleep 0.2; done; sleep 2").wait()
    assert outcome.state == "success", outcome.log
    assert all(f"] line {i}" in outcome.log for i in (1, 2, 3, 4))
    assert sum(request.resource == "pods/log" for request in kube.requests) >= 2


@pytest.mark.parametrize(("deferrable", "try_number"), [(False, 2), (True, 1)], ids=["sync", "deferrable"])
def test_pod_of_a_killed_process_is_found_again(
    echo: Echo, kube: KubeServer, tmp_path: Path, deferrable: bool, try_number: int
) -> None:
    run = echo.start(
        f"while ! test -e {tmp_path}/end; do sleep 0.02; done; echo the end", deferrable=deferrable
    )
    kube.wait_for_start()
    run.wait_for_log("Waiting up to")
    run.kill()
    resumed = echo.airflow.resume(run)
    if not deferrable:  # it would train a pod that ended meanwhile again
        resumed.wait_for_log("Reconnecting to pod")
    (tmp_path / "end").touch()
    outcome = resumed.wait()
    assert (outcome.state, outcome.task("say").try_number) == ("success", try_number), outcome.log
    assert (len(kube.created_pods), len(kube.starts)) == (1, 1)


def test_killed_run_can_be_read_from_its_database(echo: Echo, kube: KubeServer) -> None:
    run = echo.start("sleep 60")
    kube.wait_for_start()
    run.wait_for_log("Waiting up to")
    run.kill()
    assert echo.airflow.inspect(run).task("say").xcoms["pod_name"] == kube.starts[0].pod


def test_sigterm_to_the_task_reaches_the_pod_s_process(echo: Echo, kube: KubeServer) -> None:
    run = echo.start(UNTIL_TERMINATED)
    run.wait_for_log(r"\[base\] first line")
    run.terminate()
    outcome = run.wait()
    last = kube.wait_until_gone(kube.created_pods[0]["metadata"]["name"])[-1]
    assert last["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 206
    assert "] saving" in outcome.log


def test_trigger_deletes_the_pod_when_the_deferred_task_is_killed(
    echo: Echo, kube: KubeServer, tmp_path: Path
) -> None:
    run = echo.start(UNTIL_TERMINATED, deferrable=True)
    pod = kube.wait_for_start().pod
    run.wait_for_log("phase before launch")
    run.kill()
    source = f"""
        import asyncio
        from datetime import UTC, datetime
        from airflow.providers.cncf.kubernetes.triggers.pod import KubernetesPodTrigger
        trigger = KubernetesPodTrigger(
            pod_name={pod!r}, pod_namespace="default", trigger_start_time=datetime.now(UTC),
            base_container_name="base", connection_extras={{"kube_config_path": {str(echo.kubeconfig)!r}}},
        )
        asyncio.run(trigger.on_kill())
        result = trigger.serialize()[0]
    """
    assert echo.airflow.run_python(source).endswith("KubernetesPodTrigger")
    assert kube.wait_until_gone(pod)[-1]["status"]["phase"] == "Failed"


@MODES
def test_disrupted_pod_fails_the_task_and_one_that_is_gone_too(
    echo: Echo, kube: KubeServer, deferrable: bool
) -> None:
    kube.inject(faults.Evicted(on_line="ready"))
    outcome = echo.start(UNTIL_TERMINATED, deferrable=deferrable).wait()
    assert outcome.task("say").state == "failed"
    kube.inject(faults.Vanished(on_line="ready"))
    outcome = echo.start(UNTIL_TERMINATED, deferrable=deferrable).wait()
    assert outcome.task("say").state == "failed"
    assert len(kube.starts) == 2
