import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowTaskTimeout, Asset

from airflow_provider_sft import failures
from airflow_provider_sft.operators import LocalSFTTrainerOperator
from tests.operators.task import make_context, make_operator, render, run
from tests.trainer.test_refusals import wait_for

STAND_IN = str(Path(__file__).with_name("stand_in.py"))
CONFIG = {
    "model_name_or_path": "/m",
    "training_data_path": "/d.jsonl",
    "output_dir": "/o",
    "response_template": "\n",
    "dataset_text_field": "output",
}


class StandInOperator(LocalSFTTrainerOperator):
    @property
    def command(self):
        return [sys.executable, STAND_IN]


def make(config=CONFIG, **env_vars):
    operator = make_operator(StandInOperator, config=config, env_vars=env_vars)
    operator.termination_grace_period_s = 3
    return operator


def kill_soon(operator, seconds=0.6):
    threading.Timer(seconds, operator.on_kill).start()


def test_local_run_gives_the_result_of_the_termination_message():
    result = run(make())
    assert (result["status"], result["model_path"]) == ("succeeded", "/data/output/final")


def test_local_trainer_gets_the_config_byte_identical(tmp_path):
    config = {**CONFIG, "response_template": "\n### 答え:\n", "dataset_text_field": "{{ no template }}"}
    run(make(config, STAND_IN_RECORD=str(tmp_path / "record")))
    assert json.loads((tmp_path / "record").read_text())["config"] == config


def test_local_trainer_gets_a_run_id_without_try_number(tmp_path):
    operator = make(STAND_IN_RECORD=str(tmp_path / "record"))
    run(operator, make_context(operator, map_index=3, try_number=2))
    run_id = json.loads((tmp_path / "record").read_text())["run_id"]
    assert run_id == "tune_dag/manual__2026-01-01T00:00:00+00:00/tune/3"


def test_local_trainer_sees_none_of_airflows_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "secret")
    monkeypatch.setenv("SFT_TRAINER_CONFIG_JSON_ENV_VAR", "another config")
    run(make(STAND_IN_RECORD=str(tmp_path / "record")))
    seen = json.loads((tmp_path / "record").read_text())["env"]
    assert not [key for key in seen if key.startswith("AIRFLOW__")]
    assert "SFT_TRAINER_CONFIG_JSON_ENV_VAR" not in seen


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        (64, failures.ConfigFailure),
        (65, failures.DataFailure),
        (66, failures.NotFoundFailure),
        (68, failures.DivergedFailure),
        (69, failures.ExportFailure),
        (77, failures.AccessDeniedFailure),
        (201, failures.StorageFullFailure),
        (202, failures.MemoryFailure),
    ],
)
def test_local_permanent_exit_code_fails_without_retry(code, failure):
    with pytest.raises(failure, match="The reason the trainer gave") as raised:
        run(make(STAND_IN_EXIT=str(code)))
    assert isinstance(raised.value, AirflowFailException)


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        (200, failures.TransientFailure),
        (203, failures.InternalFailure),
        (204, failures.LostRankFailure),
        (205, failures.HangFailure),
        (206, failures.InterruptedFailure),
        (207, failures.LockedFailure),
        (208, failures.AcceleratorsMissingFailure),
    ],
)
def test_local_retryable_exit_code_is_retried(code, failure):
    with pytest.raises(failure, match="It reached step 2 of 2; its last checkpoint is step 1") as raised:
        run(make(STAND_IN_EXIT=str(code)))
    assert not isinstance(raised.value, AirflowFailException)


def test_local_success_without_a_result_fails_and_says_what_is_missing():
    with pytest.raises(failures.InternalFailure, match="exit code 0 but left no result"):
        run(make(STAND_IN_RESULT="none"))


def test_local_result_that_is_no_result_is_classed_by_the_code():
    with pytest.raises(failures.MemoryFailure, match="exit code 202") as raised:
        run(make(STAND_IN_EXIT="202", STAND_IN_RESULT="garbage"))
    assert "\x1b" not in str(raised.value)


def test_local_trainer_killed_by_a_signal_is_interrupted():
    with pytest.raises(failures.InterruptedFailure, match="SIGKILL"):
        run(make(STAND_IN_DIE="SIGKILL"))


def test_local_trainer_that_crashed_is_retried():
    with pytest.raises(failures.InternalFailure, match="SIGSEGV"):
        run(make(STAND_IN_DIE="SIGSEGV"))


def test_local_command_that_does_not_exist_fails_without_retry():
    class Missing(LocalSFTTrainerOperator):
        command = ("/no/such/program",)

    with pytest.raises(failures.LaunchFailure, match="/no/such/program"):
        run(make_operator(Missing, config=CONFIG))


def test_local_killed_task_lets_the_trainer_save_and_is_no_success():
    operator = make(STAND_IN_STEPS="500", STAND_IN_ON_TERM="save")
    kill_soon(operator)
    with pytest.raises(failures.InterruptedFailure, match="told to end") as raised:
        run(operator)
    assert raised.value.result["exit_code"] == 206


def test_local_killed_task_whose_trainer_just_finished_is_no_success():
    operator = make(STAND_IN_STEPS="500", STAND_IN_ON_TERM="succeed")
    kill_soon(operator)
    with pytest.raises(failures.InterruptedFailure, match="exit code 0"):
        run(operator)


def test_local_killed_task_kills_a_trainer_that_does_not_end():
    operator = make(STAND_IN_STEPS="5000", STAND_IN_ON_TERM="ignore")
    operator.termination_grace_period_s = 0.5
    kill_soon(operator)
    started = time.monotonic()
    with pytest.raises(failures.InterruptedFailure):
        run(operator)
    assert time.monotonic() - started < 10


def test_local_exception_in_the_task_ends_the_trainer(tmp_path):
    def time_out(*_):
        raise AirflowTaskTimeout("execution_timeout")

    operator = make(STAND_IN_STEPS="500", STAND_IN_ON_TERM="save", STAND_IN_RECORD=str(tmp_path / "record"))
    signal.signal(signal.SIGALRM, time_out)
    signal.setitimer(signal.ITIMER_REAL, 0.6)
    with pytest.raises(AirflowTaskTimeout, match="execution_timeout"):
        run(operator)
    with pytest.raises(ProcessLookupError):
        os.kill(json.loads((tmp_path / "record").read_text())["pid"], 0)


def test_local_child_that_holds_the_pipe_open_does_not_hang_the_task():
    started = time.monotonic()
    run(make(STAND_IN_ORPHAN="1"))
    assert time.monotonic() - started < 10


def test_local_worker_killed_outright_takes_the_trainer_along(tmp_path):
    record = tmp_path / "record"
    child = os.fork()
    if not child:
        run(make(STAND_IN_STEPS="5000", STAND_IN_RECORD=str(record)))
        os._exit(0)
    while not record.exists() or not record.read_text():
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    trainer = Path(f"/proc/{json.loads(record.read_text())['pid']}/cmdline")
    deadline = time.monotonic() + 5
    while trainer.exists() and trainer.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not (trainer.exists() and trainer.read_bytes())


def test_local_trainer_is_told_once_however_often_airflow_says_it(capsys):
    operator = make(STAND_IN_STEPS="500", STAND_IN_ON_TERM="save", STAND_IN_SAVE_S="1")
    for seconds in (0.6, 1.0):
        threading.Timer(seconds, operator.on_kill).start()
    with pytest.raises(failures.InterruptedFailure, match="told to end"):
        run(operator)
    assert capsys.readouterr().out.count("saving") == 1


def test_local_worker_killed_after_its_task_was_told_to_end_costs_no_save(lora_config, tmp_path):
    """A real trainer: the task's end tells it to save, and the death of the task's process is no second request."""
    operator = make_operator(
        LocalSFTTrainerOperator, config={**lora_config, "max_steps": 100_000, "save_strategy": "no"}
    )
    child = os.fork()
    if not child:
        signal.signal(signal.SIGTERM, lambda *_: operator.on_kill())
        run(operator)
        os._exit(0)
    out = tmp_path / "out"
    wait_for((out / "progress.json").exists)
    [trainer] = psutil.Process(child).children()
    [rank] = trainer.children()
    rank.suspend()
    os.kill(child, signal.SIGTERM)
    time.sleep(1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    rank.resume()
    wait_for((out / "result.json").exists)
    result = json.loads((out / "result.json").read_text())
    assert (result["exit_code"], result["last_checkpoint_step"]) == (206, result["steps"])


def test_local_log_shows_progress_as_a_readable_line(capsys):
    run(make(STAND_IN_STEPS="2"))
    log = capsys.readouterr().out
    assert "step 2/2 (100%)  loss 2" in log
    assert '"event"' not in log


def test_local_log_keeps_the_level_of_the_trainers_lines(capsys):
    run(make(STAND_IN_LINE="\x1b[36mWARNING: the disk is slow\x1b[0m"))
    log = capsys.readouterr().out
    assert re.search(r"(?i)warning\b.*WARNING: the disk is slow", log)
    assert "\x1b[36mWARNING" not in log


def test_local_progress_is_in_the_task_state_store():
    operator = make(STAND_IN_STEPS="3")
    context = make_context(operator)
    run(operator, context)
    store = context["task_state_store"]
    assert (store["progress"]["step"], store["attempt"], store["resumed_from"]) == (3, 1, 0)


def test_local_asset_event_carries_the_result():
    model = Asset(uri="sft://models/test")
    operator = make_operator(StandInOperator, config=CONFIG, outlets=[model])
    context = make_context(operator)
    run(operator, context)
    assert context["outlet_events"][model].extra["model_path"] == "/data/output/final"


def test_local_wrong_config_starts_no_trainer(tmp_path):
    operator = make({**CONFIG, "learning_rate": float("nan")}, STAND_IN_RECORD=str(tmp_path / "record"))
    with pytest.raises(
        failures.ConfigFailure, match="Config key 'learning_rate' is NaN. Give a finite number"
    ):
        run(operator)
    assert not (tmp_path / "record").exists()


def test_local_rendered_config_is_what_rendered_templates_shows():
    operator = make({**CONFIG, "output_dir": "/o/{{ run_id }}"})
    render(operator, make_context(operator))
    assert operator.config["output_dir"] == "/o/manual__2026-01-01T00:00:00+00:00"


def test_local_rendered_templates_hide_the_secrets_of_urls():
    from airflow.providers.common.compat.sdk import redact

    url = "https://CANARY-USER@h/t.jsonl?X-Amz-Signature=CANARY-SIG&sv=1"
    operator = make({**CONFIG, "training_data_path": url})
    render(operator, make_context(operator))
    assert operator.config["training_data_path"] == url
    assert "CANARY" not in str(redact(operator.config))


def test_local_task_without_a_config_says_so():
    with pytest.raises(failures.ConfigFailure, match="config is None. Give a dict"):
        run(make_operator(StandInOperator, config=None))
