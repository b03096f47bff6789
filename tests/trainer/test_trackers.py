"""Trackers: each against the real thing (a real MLflow server, files, ClearML offline), and none ends a run."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from transformers import TrainerControl, TrainerState, TrainingArguments

from airflow_provider_sft.contract.errors import InterruptedRunError
from airflow_provider_sft.contract.settings import resolve_config
from tests import tiny
from tests.trainer.here import run_here, train_here
from tests.trainer.test_interrupted_evaluation import ComesAt
from trainer.checkpoints import CheckpointStore
from trainer.tracker_settings import chosen_trackers, tracker_environment
from trainer.trackers import build_trackers


def needs(module: str, how: str = "make install") -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(missing, reason=f"{module} is not installed: {how}")


BASE = {
    "model_name_or_path": "/models/m",
    "training_data_path": "/data/t.jsonl",
    "output_dir": "/o",
    "dataset_text_field": "output",
}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class MLflowServer:
    """`mlflow server` on loopback, and its REST API.

    :param directory: of its store, which several servers may share
    """

    def __init__(self, directory: Path) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log = directory / f"server-{os.getpid()}.log"
        argv = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", self.url.rpartition(":")[2],
            "--backend-store-uri", f"sqlite:///{directory}/mlflow.db", "--workers", "1",
        ]  # fmt: skip
        env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                argv, cwd=directory, stdout=log, stderr=log, env=env, start_new_session=True
            )

    def wait(self, timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=2)
            except OSError:
                time.sleep(0.3)
            else:
                return
        raise TimeoutError(self.log.read_text()[-2000:])

    def ask(self, path: str, **body) -> dict:
        request = urllib.request.Request(f"{self.url}/api/2.0/mlflow/{path}")
        if body:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        return json.load(urllib.request.urlopen(request, timeout=10))

    def runs_of(self, experiment: str) -> list[dict]:
        found = self.ask(f"experiments/get-by-name?experiment_name={experiment}")["experiment"]
        return self.ask("runs/search", experiment_ids=[found["experiment_id"]])["runs"]

    def steps_of(self, run: dict, metric: str) -> list[int]:
        history = self.ask(f"metrics/get-history?run_id={run['info']['run_id']}&metric_key={metric}")
        return [int(point.get("step", 0)) for point in history["metrics"]]

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(shared_dir):
    """One for each worker of the test run; they share a store, and so the runs in it."""
    directory = shared_dir / "mlflow"
    with FileLock(shared_dir / "mlflow.lock"):
        directory.mkdir(exist_ok=True)
        server = MLflowServer(directory)
        try:
            server.wait()
        except TimeoutError:
            server.stop()
            raise
    yield server
    server.stop()


def run_config(directory: Path, model_dir: Path, **keys) -> dict:
    tweets = tiny.write_tweets(directory / "tweets.jsonl")
    return {**tiny.lora_config(model_dir, tweets, directory / "out"), "max_steps": 4, "report": False, **keys}


@pytest.fixture(scope="module")
def tracked(finish, server):
    """One run of four steps that tells every tracker at once."""
    return finish(
        "tracked",
        max_steps=4,
        report=False,
        trackers=["tensorboard", "mlflow"],
        mlflow_tracking_uri=server.url,
        mlflow_experiment="tweets",
        exp_metadata='{"team": "support"}',
        run_name="first-run",
        training_logs_filename="curve.jsonl",
        save_strategy="no",
    )


@needs("mlflow")
def test_run_with_every_tracker_has_nothing_to_complain_of(tracked):
    assert [notice for notice in tracked.result.get("notices", []) if "racker" in notice] == []


@needs("mlflow")
def test_mlflow_server_has_every_logged_step_of_the_run(tracked, server):
    [run] = server.runs_of("tweets")
    assert (run["info"]["run_name"], run["info"]["status"]) == ("first-run", "FINISHED")
    assert server.steps_of(run, "loss") == [1, 2, 3, 4]
    params = {param["key"]: param["value"] for param in run["data"]["params"]}
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    assert (params["max_steps"], tags["team"]) == ("4", "support")


@needs("mlflow")
def test_mlflow_tracker_json_leads_to_the_run(tracked, server):
    described = json.loads((tracked.out / "mlflow_tracker.json").read_text())
    [run] = server.runs_of("tweets")
    info = run["info"]
    url = tracked.config["mlflow_tracking_uri"]
    assert described["run_uri"] == f"{url}/#/experiments/{info['experiment_id']}/runs/{info['run_id']}"
    assert described["run_name"] == "first-run"


@needs("mlflow")
def test_tensorboard_files_hold_the_curve(tracked):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    described = json.loads((tracked.out / "tensorboard_tracker.json").read_text())
    assert described == {"logging_dir": str(tracked.out / "runs")}
    events = EventAccumulator(described["logging_dir"])
    events.Reload()
    scalars = events.Scalars("train/loss")
    assert [scalar.step for scalar in scalars] == [1, 2, 3, 4]
    losses = [progress["loss"] for progress in tracked.progress]
    assert [scalar.value for scalar in scalars] == pytest.approx(losses, rel=1e-4)
    assert "experiment_metadata/text_summary" in events.Tags()["tensors"]


@needs("mlflow")
def test_file_logger_writes_the_peers_lines_into_the_file_asked_for(tracked):
    lines = [json.loads(line) for line in (tracked.out / "curve.jsonl").read_text().splitlines()]
    assert [(line["name"], line["data"]["step"]) for line in lines] == [
        ("training_loss", step) for step in (1, 2, 3, 4)
    ]
    assert set(lines[0]["data"]) == {"epoch", "step", "timestamp", "value"}
    assert not (tracked.out / "training_logs.jsonl").exists()


@pytest.fixture
def attempt(monkeypatch, tmp_path):
    """A rank in this process, with what the parent puts into the environment of its rank."""

    def attempt(config: dict, **kwargs: object) -> dict:
        with monkeypatch.context() as patch:
            given = tracker_environment(resolve_config(config), os.environ, Path(config["output_dir"]))
            for name, value in given.items():
                patch.setenv(name, value)
            return train_here(config, tmp_path / "scratch", **kwargs)

    return attempt


@needs("mlflow")
def test_a_retry_goes_on_in_the_same_mlflow_run(server, tiny_model_dir, tmp_path, attempt):
    config = run_config(
        tmp_path,
        tiny_model_dir,
        trackers=["mlflow"],
        mlflow_tracking_uri=server.url,
        experiment="retried",
        max_steps=60,
    )
    with pytest.raises(InterruptedRunError, match="at step 7 and saved"):
        attempt(config, stop=ComesAt(8))  # it looks after a step, and after the save at step 4
    attempt(config, resume_from=CheckpointStore(tmp_path / "out").newest_valid(pytest.fail))
    [run] = server.runs_of("retried")
    assert server.steps_of(run, "loss") == list(range(1, 61))


@needs("mlflow")
def test_a_server_that_cannot_be_reached_is_a_sentence_in_the_result(
    attempt, tiny_model_dir, tmp_path, caplog
):
    url = f"http://127.0.0.1:{free_port()}"
    config = run_config(tmp_path, tiny_model_dir, trackers=["mlflow"], mlflow_tracking_uri=url)
    attempt(config)
    result = run_here(config)  # which finds it trained, and does the rest
    sentence = f"Tracker 'mlflow' got nothing: {url} cannot be reached. The run went on without it."
    assert (result["exit_code"], result["steps"]) == (0, 4)
    assert sentence in result["notices"]
    assert sentence in caplog.messages


@pytest.fixture(autouse=True)
def no_active_run_is_left(monkeypatch):
    """MLflow ends an active run when Python exits, in a store of its own where ours is forgotten by then."""
    yield
    if (mlflow := sys.modules.get("mlflow")) is not None:
        with contextlib.suppress(Exception):
            mlflow.end_run()
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)  # MLflow sets it for processes that are started next


class Bench:
    """Trackers driven by hand."""

    def __init__(self, tmp_path, monkeypatch, **keys):
        self.out = tmp_path / "out"
        self.out.mkdir(exist_ok=True)
        settings = resolve_config({**BASE, "output_dir": str(self.out), **keys})
        env = tracker_environment(settings, os.environ, self.out)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        self.notices = []
        self.trackers = build_trackers(settings, self.out, say=self.notices.append, environ=env)
        self.args = TrainingArguments(output_dir=str(self.out), report_to="none", use_cpu=True)
        self.state = TrainerState(max_steps=4)

    def fire(self, event, **kwargs):
        for tracker in self.trackers:
            getattr(tracker, event)(self.args, self.state, TrainerControl(), **kwargs)

    def log(self, step):
        self.state.global_step = step
        self.fire("on_log", logs={"loss": 1.0 / step})


@needs("mlflow")
def test_a_tracker_that_fails_on_the_way_is_dropped_and_said_once(tmp_path, monkeypatch):
    store = tmp_path / "mlruns"
    bench = Bench(tmp_path, monkeypatch, trackers=["mlflow", "tensorboard"], mlflow_tracking_uri=str(store))
    bench.fire("on_train_begin")
    bench.log(1)
    store.rename(tmp_path / "gone")
    store.write_text("a file now")
    for step in (2, 3):
        bench.log(step)
    bench.fire("on_train_end")
    [notice] = bench.notices
    assert notice.startswith("Tracker 'mlflow' got nothing from step 2 on (")
    assert list((bench.out / "runs").glob("events*"))


@needs("mlflow")
def test_a_directory_serves_mlflow_as_well(tmp_path, monkeypatch):
    bench = Bench(tmp_path, monkeypatch, trackers=["mlflow"], mlflow_tracking_uri=str(tmp_path / "mlruns"))
    bench.fire("on_train_begin")
    bench.log(1)
    bench.fire("on_train_end")
    assert bench.notices == []
    [metric] = (tmp_path / "mlruns").glob("*/*/metrics/loss")
    assert metric.read_text().split()[1:] == ["1.0", "1"]
    assert json.loads((bench.out / "mlflow_tracker.json").read_text())["run_uri"].startswith(
        "<host_url>/#/exp"
    )


def forks_of(process: psutil.Process) -> list[psutil.Process]:
    forks = []
    for child in process.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            forks += [child] if child.cmdline() == process.cmdline() else []
    return forks


@needs("clearml")
def test_clearml_offline_gets_the_loss_and_takes_neither_signals_nor_a_fork(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARML_OFFLINE_MODE", "1")
    monkeypatch.setenv("CLEARML_CACHE_DIR", str(tmp_path / "clearml"))
    before = signal.getsignal(signal.SIGTERM)
    bench = Bench(tmp_path, monkeypatch, trackers=["clearml"])
    bench.fire("on_train_begin")
    assert signal.getsignal(signal.SIGTERM) is before
    # A reporter that is forked from a process with threads may never report, and would be waited for.
    # A child that is about to run another program looks like a fork for a moment.
    forks = forks_of(psutil.Process())
    assert psutil.wait_procs(forks, timeout=10)[1] == [] or forks_of(psutil.Process()) == []
    bench.log(1)
    bench.fire("on_train_end")
    assert bench.notices == []
    [metrics] = (tmp_path / "clearml").rglob("metrics.jsonl")
    assert '"variant": "loss"' in metrics.read_text()


@needs(
    "aim",
    "it needs filelock<4, the rest filelock 4. In a copy of .venv: pip install aim 'filelock<4'; run this test",
)
def test_aim_repository_holds_the_run(tmp_path, monkeypatch):
    import aim

    repo = tmp_path / "aim"
    repo.mkdir()
    aim.Repo.from_path(str(repo), init=True)
    bench = Bench(
        tmp_path, monkeypatch, trackers=["aim"], aim_repo=str(repo), exp_metadata={"team": "support"}
    )
    bench.fire("on_train_begin")
    bench.log(1)
    bench.fire("on_train_end")
    assert bench.notices == []
    described = json.loads((bench.out / "aim_tracker.json").read_text())
    assert aim.Repo.from_path(str(repo)).run_exists(described["run_hash"])


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        ({}, []),
        ({"trackers": None}, []),
        ({"trackers": ["file_logger"]}, []),
        ({"trackers": ["mlflow", "file_logger"], "report_to": "tensorboard"}, ["mlflow", "tensorboard"]),
        ({"trackers": ["mlflow"], "report_to": ["mlflow", "none"]}, ["mlflow"]),
    ],
)
def test_trackers_and_report_to_name_each_tracker_once(keys, chosen):
    assert chosen_trackers(resolve_config({**BASE, **keys}).values) == chosen


def env_of(tmp_path, environ=None, **keys):
    return tracker_environment(resolve_config({**BASE, **keys}), environ or {}, tmp_path)


def test_peers_keys_become_what_the_clients_read(tmp_path):
    keys = {
        "mlflow_tracking_uri": "http://mlflow:5000",
        "clearml_project": "p",
        "clearml_task": "t",
        "experiment": "e",
    }
    env = env_of(tmp_path, trackers=["mlflow", "clearml", "tensorboard"], logging_dir="/logs", **keys)
    assert env == {
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "MLFLOW_EXPERIMENT_NAME": "e",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "CLEARML_PROJECT": "p",
        "CLEARML_TASK": "t",
        "CLEARML_LOG_MODEL": "FALSE",
        "TENSORBOARD_LOGGING_DIR": "/logs",
    }


def test_an_mlflow_run_is_taken_up_again_on_its_own_server_alone(tmp_path):
    uri = "http://mlflow:5000"
    described = {"run_id": "abc", "tracking_uri": uri}
    (tmp_path / "mlflow_tracker.json").write_text(json.dumps(described))
    env = env_of(tmp_path, trackers=["mlflow"], mlflow_tracking_uri=uri)
    assert (env["MLFLOW_RUN_ID"], env["MLFLOW_MAX_LOG_PARAMS"]) == ("abc", "0")
    assert "MLFLOW_RUN_ID" not in env_of(tmp_path, trackers=["mlflow"], mlflow_tracking_uri="http://other")


def test_patience_set_by_whoever_runs_the_pod_is_kept(tmp_path):
    environ = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "7"}
    env = env_of(tmp_path, environ, trackers=["mlflow"], mlflow_tracking_uri="http://m")
    assert env["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "7"
