"""The trainer itself behind every operator: what comes out is the same, and what is interrupted goes on."""

import json
import time
from pathlib import Path

import pytest

from tests.operators.cluster import tune

# What differs from run to run, or by where it ran.
VARYING = ("wall_s", "gpu_s", "tokens_per_s", "model_path", "config_sha256", "notices")


@pytest.fixture
def three_steps(lora_config):
    return {**lora_config, "max_steps": 3, "save_strategy": "no", "report": False}


@pytest.fixture
def many_steps(lora_config):
    return {**lora_config, "max_steps": 300, "save_strategy": "no", "report": False}


def comparable(result):
    return {key: value for key, value in result.items() if key not in VARYING}


def wait_for_step(desk, run, step):
    end = time.monotonic() + 60
    while f"step {step}/" not in run.log:
        assert time.monotonic() < end, run.log[-3000:]
        time.sleep(0.05)


def attempts(config):
    lines = (Path(config["output_dir"]) / "attempts.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "exit_code" in record]


def test_every_operator_gives_the_same_result(desk, three_steps, tmp_path):
    results = []
    for number, start in enumerate((desk.local, lambda config: desk.trainer(config, deferrable=True))):
        outcome, task = tune(start({**three_steps, "output_dir": str(tmp_path / f"out-{number}")}))
        assert task.state == "success", outcome.log
        results.append(comparable(task.xcoms["return_value"]))
    assert results[0]["steps"] == 3
    assert results[0] == results[1]


def test_sync_task_told_to_end_saves_and_its_retry_resumes(desk, many_steps):
    run = desk.trainer(many_steps, deferrable=False, retries=1, retry_delay=0.1)
    wait_for_step(desk, run, 5)
    run.terminate()
    outcome, task = tune(run)
    assert (task.state, task.try_number) == ("success", 2), outcome.log
    assert [attempt["exit_code"] for attempt in attempts(many_steps)] == [206, 0]
    result = task.xcoms["return_value"]
    assert result["resumed_from_step"] >= 5
    assert comparable(result) == comparable(written(many_steps))


def written(config):
    return json.loads((Path(config["output_dir"]) / "result.json").read_text())


def test_pod_taken_away_saves_and_the_retry_resumes(desk, many_steps):
    from tests.kube import faults

    run = desk.trainer(many_steps, deferrable=True, retries=1, retry_delay=0.1)
    wait_for_step(desk, run, 5)
    desk.kube.strike(desk.kube.pods()[0]["metadata"]["name"], faults.Preempted())
    outcome, task = tune(run)
    assert (task.state, task.try_number) == ("success", 2), outcome.log
    assert "The pod was preempted at step" in outcome.log
    assert [attempt["exit_code"] for attempt in attempts(many_steps)] == [206, 0]
    assert task.xcoms["return_value"]["resumed_from_step"] >= 5


def test_local_task_told_to_end_saves_and_its_retry_resumes(desk, many_steps):
    run = desk.local(many_steps, retries=1, retry_delay=0.1)
    wait_for_step(desk, run, 5)
    run.terminate()
    outcome, task = tune(run)
    assert (task.state, task.try_number) == ("success", 2), outcome.log
    assert [attempt["exit_code"] for attempt in attempts(many_steps)] == [206, 0]
    assert task.xcoms["return_value"]["resumed_from_step"] >= 5


def test_two_tasks_with_one_output_dir_do_not_train_into_it_together(desk, three_steps):
    configs = [three_steps, {**three_steps, "learning_rate": 5e-3}]
    outcome = desk.map_local(configs).wait()
    assert sorted(task.state for task in outcome.tasks) == ["failed", "success"]
    assert f"output_dir {three_steps['output_dir']} belongs to DAG " in outcome.log


HOSTILE = """### Text: hi
{"event":"progress","attempt":99,"step":999999,"max_steps":1000000}
2026-11-24 08:42:03,622 ERROR trainer: forged
\x1b[2J⟦\u202e

### Label: no complaint"""


def test_rows_that_pose_as_progress_or_as_log_lines_are_text_in_the_tasks_log(desk, three_steps, tmp_path):
    rows = tmp_path / "hostile.jsonl"
    rows.write_text((json.dumps({"output": HOSTILE}) + "\n") * 8)
    outcome, task = tune(desk.local({**three_steps, "training_data_path": str(rows)}))
    assert task.state == "success", outcome.log
    assert "step 3/3" in outcome.log
    assert "step 999999" not in outcome.log
    assert "  | 2026-11-24 08:42:03,622 ERROR trainer: forged" in outcome.log
    assert "\\x1b[2J\\u27e6\\u202e" in outcome.log
    assert not any(raw in outcome.log for raw in ("\x1b[2J", "\u202e"))


def test_secrets_of_a_data_url_are_shown_nowhere(desk, three_steps):
    url = "https://CANARY-1@h.test/t.jsonl?sig=CANARY-2"
    outcome, task = tune(desk.local({**three_steps, "training_data_path": url}))
    assert task.state == "failed", outcome.log
    assert "https://***@h.test/t.jsonl?sig=***" in outcome.log
    assert "CANARY" not in outcome.log


@pytest.mark.skipif(bool(list(Path("/dev").glob("nvidia[0-9]*"))), reason="a GPU is there")
def test_gpus_that_the_pod_requested_and_does_not_see_fail_the_task_in_the_drivers_words(desk, three_steps):
    outcome, task = tune(desk.trainer(three_steps, deferrable=True, gpus=2))
    assert task.state == "failed", outcome.log
    assert desk.exit_codes() == [208]
    assert "AcceleratorsMissingFailure" in outcome.log
    assert (
        "2 GPUs were requested for this pod, and 0 are visible. The driver says: libcuda.so.1" in outcome.log
    )
    assert not (Path(three_steps["output_dir"]) / "attempts.jsonl").exists()
