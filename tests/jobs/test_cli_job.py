import contextlib
import io
import json
import tempfile
from dataclasses import dataclass

import pytest
import yaml

from airflow_provider_sft.cli import main
from tests.operators.test_pod import SEED_CONFIG


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def run_job(config, *arguments):
    """In this process: each import of Airflow takes seconds."""
    out, err = io.StringIO(), io.StringIO()
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(config, file)
        file.flush()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["job", file.name, *arguments])
    return Done(code, out.getvalue(), err.getvalue())


def kinds(done):
    assert done.returncode == 0, done.stderr
    return [manifest["kind"] for manifest in yaml.safe_load_all(done.stdout)]


@pytest.mark.parametrize(
    ("engine", "printed"),
    [
        ("job", ["Service", "Job"]),
        ("pytorchjob", ["PyTorchJob"]),
        ("jobset", ["JobSet"]),
        ("trainjob", ["TrainingRuntime", "TrainJob"]),
    ],
)
def test_job_command_prints_the_manifests_of_an_engine(engine, printed):
    done = run_job(SEED_CONFIG, "--image", "i:1", "--engine", engine, "--num-nodes", "2", "--name", "t")
    assert kinds(done) == printed


def test_job_command_takes_a_job_for_one_node():
    assert kinds(run_job(SEED_CONFIG, "--image", "i:1")) == ["Job"]


def test_job_command_writes_a_long_config_as_a_config_map_first():
    long = {**SEED_CONFIG, "chat_template": "x" * 100_000}
    assert kinds(run_job(long, "--image", "i:1", "--engine", "jobset")) == ["ConfigMap", "JobSet"]


def test_job_command_refuses_a_wrong_config_with_64():
    done = run_job({**SEED_CONFIG, "learning_rte": 1}, "--image", "i:1")
    assert (done.returncode, done.stdout) == (64, "")
    assert "Did you mean 'learning_rate'?" in done.stderr


def test_job_command_refuses_no_nodes_with_64():
    done = run_job(SEED_CONFIG, "--image", "i:1", "--num-nodes", "0")
    assert (done.returncode, done.stdout) == (64, "")
    assert "num_nodes is 0. Give 1 or more." in done.stderr
