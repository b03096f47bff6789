"""Told to stop, or killed, between the last step and the completion mark: the training is not done again."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.trainer.here import run_here, train_here
from tests.trainer.test_refusals import wait_for
from trainer.consensus import StopSignal
from trainer.files import sha256_file
from trainer.lock import RECORD_FILE
from trainer.stop import StopRequest
from trainer.trained import TRAINED_FILE, Trained

GOES_ON = "goes on from the trained model"


@pytest.fixture
def config(lora_config):
    """Without a checkpoint: what is not kept of the training is lost."""
    return {**lora_config, "save_strategy": "no", "lora_post_process_for_vllm": True, "vllm_export": "both"}


@pytest.fixture
def trained(config, tmp_path) -> Path:
    """An output_dir as an attempt left it that was killed after the last step."""
    config["add_special_tokens"] = ["<|a|>"]
    train_here(config, tmp_path / "scratch")
    return tmp_path / "out"


def exported(out: Path) -> dict[str, str]:
    return {str(path.relative_to(out)): sha256_file(path) for path in sorted(out.rglob("*.safetensors"))}


def test_sigterm_after_the_last_step_is_206_and_nothing_is_trained_again(
    config, start_trainer, tmp_path, caplog
):
    out = tmp_path / "out"
    run = start_trainer(config)
    wait_for((out / TRAINED_FILE).exists, poll_s=0.001)
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 206
    assert not (out / ".complete").exists()
    assert run.result["reason"].startswith("Interrupted after the last step")
    assert run.result["last_checkpoint_step"] == run.result["steps"] == 8
    history = (out / ".sft.history.jsonl").read_bytes()
    with caplog.at_level("INFO"):
        result = run_here(config)
    assert GOES_ON in caplog.text
    assert (result["exit_code"], result["steps"], result["resumed_from_step"], result["attempt"]) == (
        0,
        8,
        8,
        2,
    )
    assert result["train_loss_last"] > 0
    assert (out / ".sft.history.jsonl").read_bytes() == history
    assert (out / ".complete").exists()
    assert not (out / TRAINED_FILE).exists()
    assert run_here(config) == result


def test_signal_at_any_moment_of_the_export_is_206_and_the_next_attempt_ends_with_the_same_files(
    config, trained, tmp_path
):
    def start(name: str, stop: StopRequest) -> tuple[Path, int]:
        out = tmp_path / name
        if not out.exists():
            shutil.copytree(trained, out)
            record = (out / TRAINED_FILE).read_text()
            (out / TRAINED_FILE).write_text(record.replace(str(trained), str(out)))
        return out, run_here({**config, "output_dir": str(out)}, stop=stop)["exit_code"]

    started = time.monotonic()
    undisturbed, code = start("undisturbed", StopRequest())
    lasts_s = time.monotonic() - started
    assert code == 0
    ends = []
    for number in range(24):
        stop = StopRequest()
        stop.install()
        try:
            killer = threading.Timer(lasts_s * number / 24, os.kill, [os.getpid(), signal.SIGTERM])
            killer.start()
            out, code = start(f"out-{number}", stop)
            killer.join()
        finally:
            StopRequest.uninstall()
        ends.append((out / ".complete").exists())
        assert code == 206 or (code == 0 and ends[-1])
        assert start(out.name, StopRequest())[1] == 0
        assert exported(out) == exported(undisturbed)
    assert ends.count(False) >= 5, "hardly a signal came before the end"


def test_trained_model_that_was_damaged_since_is_not_taken(trained):
    said = []
    weights = trained / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    assert Trained.read(trained, said.append)
    weights.write_bytes(content)
    assert Trained.read(trained, said.append) is None
    assert said == [
        f"The trained model in {trained} cannot be used: adapter_model.safetensors is damaged (its digest differs)."
    ]


def test_report_of_a_run_that_was_interrupted_before_its_samples_says_so(config, tmp_path):
    config |= {"generate_samples": 2}
    stop = StopSignal()
    stop.received = True  # it comes after the last step: there is no other at which the callback looks
    train_here({**config, "max_steps": 1}, tmp_path / "scratch", stop=stop)
    result = run_here({**config, "max_steps": 1})
    assert result["exit_code"] == 0
    assert "report.html lacks the tuned model's answers: the run was interrupted before." in result["notices"]
    assert (tmp_path / "out" / "report.html").read_text().count("not asked: the run was interrupted") == 2


def test_attempt_that_names_a_checkpoint_does_not_take_the_trained_model(config, trained):
    result = run_here({**config, "resume_from_checkpoint": str(trained / "checkpoint-7")})
    assert (result["exit_code"], result["reason"].count("checkpoint-7")) == (66, 1)


def test_node_beside_the_first_has_nothing_to_do_when_the_training_is_over(config, trained):
    node = {
        "PET_NNODES": "2",
        "PET_NODE_RANK": "1",
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_NPROC_PER_NODE": "1",
    }
    assert "node 0 does the rest" in run_here(config, **node)["reason"]
    assert run_here(config)["exit_code"] == 0
    assert run_here(config, **node)["reason"] == "This run finished before."


def test_run_that_lost_its_lock_writes_no_completion_and_no_result(config, trained, monkeypatch):
    """Frozen for a while, it wakes in a directory that is another run's by now."""
    monkeypatch.setattr("trainer.lock._BEAT_S", 0.001)
    stop = StopRequest()
    stop.install()
    taker = threading.Thread(target=take_over, args=[trained, stop])
    taker.start()
    try:
        result = run_here(config, stop=stop)
    finally:
        StopRequest.uninstall()
        taker.join()
    assert (result["exit_code"], result["reason"][:15]) == (206, "Another run has")
    assert not (trained / ".complete").exists()
    assert not (trained / "result.json").exists()


def take_over(out: Path, stop: StopRequest) -> None:
    wait_for((out / RECORD_FILE).exists, poll_s=0.0001)
    for _ in range(5_000):  # the beat may be writing just then
        (out / RECORD_FILE).write_text('{"token": "somebody else"}')
        if stop.lock_lost:
            return
        time.sleep(0.001)
