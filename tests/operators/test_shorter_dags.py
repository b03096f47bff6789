"""`@task.sft` and `sft_tuning_group`, through Airflow."""

import json

from tests.operators.cluster import CONFIG, MODES, STAND_IN

TASK = """
from airflow.providers.common.compat.sdk import DAG, task

with DAG("short", schedule=None):
    @task
    def measure():
        return 0.002

    @task.sft(image="busybox", cmds={cmds!r}, gpus=0, poll_interval=0.2, deferrable={deferrable}, retries=0,
              env_vars={{"STAND_IN_RECORD": {record!r}}})
    def tune(rate, run_id=None):
        return {config!r} | {{"learning_rate": rate, "output_dir": "/o/" + run_id}}

    tune(measure())
"""
GROUP = """
from airflow.providers.common.compat.sdk import DAG, task
from airflow_provider_sft.groups import sft_tuning_group
from airflow_provider_sft.operators import SFTTrainerOperator

def evaluate(result):
    return {{"accuracy": 0.9}}

with DAG("group", schedule=None):
    group = sft_tuning_group(
        operator_class=SFTTrainerOperator, config={config!r}, evaluate=evaluate,
        at_most={{"eval_loss": {limit}}}, at_least={{"accuracy": 0.8}},
        image="busybox", cmds={cmds!r}, gpus=0, poll_interval=0.2, retries=0,
    )
    group >> task(task_id="release")(lambda: "released")()
"""


@MODES
def test_function_decorated_with_task_sft_tunes_by_the_config_it_returns(desk, airflow, tmp_path, deferrable):
    record = tmp_path / "record"
    source = TASK.format(cmds=STAND_IN, config=CONFIG, record=str(record), deferrable=deferrable)
    outcome = airflow.run_dag(source, "short", env=desk.env)
    assert outcome.state == "success", outcome.log
    assert outcome.task("tune").xcoms["return_value"]["model_path"] == "/data/output/final"
    config = json.loads(record.read_text())["config"]
    assert (config["learning_rate"], config["output_dir"]) == (0.002, f"/o/{outcome.run_id}")


def run_group(desk, airflow, limit):
    config = {**CONFIG, "learning_rate": 0.5}
    return airflow.run_dag(GROUP.format(cmds=STAND_IN, config=config, limit=limit), "group", env=desk.env)


def test_tuning_group_releases_a_model_that_passes(desk, airflow):
    outcome = run_group(desk, airflow, limit=1.0)
    assert outcome.state == "success", outcome.log
    assert outcome.task("release").state == "success"
    tasks = [pod["metadata"]["labels"]["task_id"] for pod in desk.kube.created_pods]
    assert tasks == ["tuning.check_data", "tuning.tune"]


def test_tuning_group_stops_a_model_that_does_not_pass(desk, airflow):
    outcome = run_group(desk, airflow, limit=0.1)
    assert (outcome.task("tuning.gate").state, outcome.task("release").state) == ("failed", "upstream_failed")
    assert "eval_loss is 0.5, at most 0.1" in outcome.log
