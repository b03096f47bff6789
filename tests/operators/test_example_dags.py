"""The example DAGs run: images and volumes of a real cluster taken out, the stand-in as the pod."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from jinja2.sandbox import SandboxedEnvironment

from airflow_provider_sft.assets import event_extra
from tests.kube.airflow_env import AirflowEnv
from tests.operators.cluster import STAND_IN

DAGS = Path(__file__).parents[2] / "dags"
VOLUMES = 'volumes={"/model": "pvc:model:ro", "/data": "pvc:data:ro", "/output": "pvc:output"},'


@pytest.fixture
def run_example(desk, airflow: AirflowEnv, tmp_path):
    def run(dag_id, **conf):
        pods = {"cmds": STAND_IN, "poll_interval": 0.2, "retry_delay": 0.1, "startup_timeout_seconds": 30}
        pods["env_vars"] = {"STAND_IN_RECORD": str(tmp_path / "record")}
        source = (DAGS / f"{dag_id}.py").read_text()
        assert source.count(VOLUMES) == 1
        source = source.replace(VOLUMES, "").replace("registry.example.com/sft-trainer:1", "busybox")
        source = source.replace("doc_md=__doc__,", f"doc_md=__doc__, default_args={pods!r},")
        return airflow.run_dag(source, dag_id, conf=conf, env=desk.env)

    return run


def test_scheduled_dag_leaves_a_model_as_an_asset_event(run_example, desk):
    outcome = run_example("scheduled")
    assert outcome.state == "success", outcome.log
    assert outcome.task("tune").xcoms["return_value"]["model_path"] == "/data/output/final"
    assert len(desk.kube.created_pods) == 1


def test_manual_dag_takes_the_form(run_example, desk):
    outcome = run_example("manual", learning_rate=1e-3, gpus=2, more={"warmup_ratio": 0.1})
    assert outcome.state == "success", outcome.log
    container = desk.kube.created_pods[0]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert outcome.task("tune").xcoms["return_value"]["eval_loss"] == 1e-3


def read_record(tmp_path):
    return json.loads((tmp_path / "record").read_text().splitlines()[-1])


def test_on_new_data_dag_takes_the_parameter_when_started_by_hand(run_example, tmp_path):
    outcome = run_example("on_new_data", data="/data/other.jsonl")
    assert outcome.state == "success", outcome.log
    assert read_record(tmp_path)["config"]["training_data_path"] == "/data/other.jsonl"


@pytest.mark.parametrize("name", ["triggering_asset_events", "triggering_dataset_events"])
def test_event_extra_takes_the_newest_events_path(name):
    events = {"asset": [SimpleNamespace(extra={"path": "/old"}), SimpleNamespace(extra={"path": "/new"})]}
    template = SandboxedEnvironment().from_string(event_extra("path", otherwise="params.data"))
    assert template.render({name: events, "params": {"data": "/other"}}) == "/new"


def test_sweep_dag_keeps_the_best(run_example, desk):
    outcome = run_example("sweep")
    assert outcome.state == "success", outcome.log
    assert outcome.task("best").xcoms["return_value"]["eval_loss"] == 1e-5
    assert len(desk.kube.created_pods) == 6
