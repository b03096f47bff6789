"""The example DAGs run: images and volumes of a real cluster taken out, the stand-in as the pod.

Those that need no cluster run as they are, with the tiny model.
"""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from jinja2.sandbox import SandboxedEnvironment

from airflow_provider_sft.assets import event_extra
from airflow_provider_sft.examples.languages import LANGUAGES
from tests import tiny
from tests.kube.airflow_env import AirflowEnv
from tests.kube.fixtures import IMAGES, TRAINER_IMAGE
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


OFFLINE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def test_quickstart_dag_tunes_a_model(airflow, tiny_model_dir, tmp_path):
    data, output_dir = tiny.write_chats(tmp_path / "chats.jsonl"), tmp_path / "out"
    conf = {"model": str(tiny_model_dir), "data": str(data), "output_dir": str(output_dir)}
    outcome = airflow.run_dag((DAGS / "quickstart.py").read_text(), "quickstart", conf=conf, env=OFFLINE)
    assert outcome.state == "success", outcome.log
    assert outcome.task("tune").xcoms["return_value"]["steps"] == 20
    assert (output_dir / "adapter_model.safetensors").exists()


@pytest.fixture
def claim(desk, tmp_path, tiny_model_dir):
    """A claim with model and corpus on it, mounted on the worker as well: what dags/data_to_tuning.py asks for."""
    directory, mounted = tmp_path / "claim", tmp_path / "mnt" / "data"
    shutil.copytree(tiny_model_dir, directory / "model")
    for language in LANGUAGES:
        folder = directory / "corpus" / language.lower()
        folder.mkdir(parents=True)
        messages = [[f"the {number}th message of {language} speakers"] for number in range(28)]
        (folder / "talk.yml").write_text(json.dumps({"conversations": messages}))
    desk.kube.add_claim("data", directory)
    mounted.symlink_to(directory)
    return mounted


def test_data_to_tuning_dag_goes_to_a_cluster_by_the_one_line_it_names(desk, airflow, claim):
    source = (DAGS / "data_to_tuning.py").read_text()
    [line] = re.findall(r"^    # (tune = .*)$", source, re.MULTILINE)
    here = "tune = operators.LocalSFTTrainerOperator("
    assert source.count(f"\n    {here}\n") == 1
    desk.kube.add_image("sft-trainer:1", IMAGES[TRAINER_IMAGE])
    # The test cluster has no GPU to show.
    line = line.replace("SFTTrainerOperator(", 'SFTTrainerOperator(env_vars={"SFT_EXPECTED_GPUS": "0"}, ')
    source = source.replace(f"    {here}", f"    {line.replace('/data', str(claim))}")
    conf = {"model": f"{claim}/model", "corpus": f"{claim}/corpus", "work_dir": f"{claim}/runs"}
    outcome = airflow.run_dag(source, "data_to_tuning", conf=conf, env={**desk.env, **OFFLINE})
    assert outcome.state == "success", outcome.log
    assert outcome.task("tune").xcoms["return_value"]["model_kind"] == "adapter"
    assert outcome.task("verdict").xcoms["return_value"]["num_rows"] == 64
    assert desk.counts == (1, 1)
