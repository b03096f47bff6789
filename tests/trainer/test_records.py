"""What lies in output_dir may be damaged: no attempt ends by it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.trainer.here import run_here
from trainer.damaged import set_damaged_aside
from trainer.files import append_line
from trainer.outcome import read_success
from trainer.progress import ProgressWriter, read_history, read_step
from trainer.run_dir import RunDir, read_samples
from trainer.trained import Trained

DAMAGES = {
    "foreign bytes": b"\xff\xfe\x00garbage\x80\n" * 3,
    "NULs": bytes(512),
    "nothing": b"",
    "an empty object": b"{}\n{}\n",
    "a list": b"[1, 2]\n[3]\n",
    "a text": b'"x"\n"y"\n',
    "cut": b'{"attempt": 1, "event": "sta',
    "nested deeply": b'{"a":' * 60_000 + b"\n1\n",
    "a long number": b'{"step": ' + b"9" * 5000 + b"}\n{}\n",
    "other types": b'{"attempt":"x","event":7,"time":null,"step":[],"samples":{"a":1},"files":[],"facts":"f",'
    b'"model_dir":9,"notices":{},"exported":[],"exit_code":"0","status":[],"token":3,"pid":"../x","beat":{}}\n' * 2,
    "numbers out of range": b'{"attempt":1,"event":"started","time":1e999,"step":true,"loss":"x","exit_code":255}\n' * 2,
}  # fmt: skip
RECORDS = (
    "attempts.jsonl",
    ".sft.history.jsonl",
    "progress.json",
    "result.json",
    ".sft.trained.json",
    ".sft.samples.json",
    ".sft.statistics.json",
    ".sft.lock.json",
    ".sft.lock",
    "training_logs.jsonl",
    "report.html",
)


def damage(path, content):
    path.parent.mkdir(exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.mkdir() if content is None else path.write_bytes(content)


@pytest.mark.parametrize("content", [*DAMAGES.values(), None], ids=[*DAMAGES, "a directory"])
def test_damaged_record_is_set_aside_in_one_sentence_and_the_next_attempt_reads_and_writes(tmp_path, content):
    for name in RECORDS[:7]:
        damage(tmp_path / name, content)
    said = []
    set_damaged_aside(tmp_path, said.append)
    run_dir = RunDir(tmp_path)
    assert (run_dir.attempts(), read_history(tmp_path), read_samples(tmp_path)) == ([], [], [])
    assert (read_step(tmp_path, 1), Trained.read(tmp_path, said.append)) == (None, None)
    run_dir.record(1, "started", gpus=0)
    writer = ProgressWriter(tmp_path, attempt=1, resumed_from_step=0)
    writer.write(1, 2, 0.5, {"loss": 1.0})
    assert (len(run_dir.attempts()), read_history(tmp_path)[0]["step"], read_step(tmp_path, 1)) == (1, 1, 1)
    assert all(sentence.count("\n") == 0 and str(tmp_path) in sentence for sentence in said)
    assert len(said) == len(list(tmp_path.glob("*.damaged")))


def test_lines_around_damaged_ones_are_kept_and_the_next_is_a_line_of_its_own(tmp_path):
    run_dir = RunDir(tmp_path)
    run_dir.record(1, "started", gpus=2)
    with (tmp_path / "attempts.jsonl").open("ab") as file:
        file.write(b'\xff\n{}\n{"attempt": 2, "event": "torn')
    append_line(tmp_path / "attempts.jsonl", {"attempt": 3, "event": "started", "time": 5.0})
    assert [entry["attempt"] for entry in run_dir.attempts()] == [1, 3]
    set_damaged_aside(tmp_path, lambda _sentence: None)
    assert [entry["attempt"] for entry in run_dir.attempts()] == [1, 3]


FORGED = {
    "a key is missing": {"contract_version": 1, "status": "succeeded", "reason": "", "advice": ""},
    "a code that is none": {"contract_version": 1, "status": "succeeded", "exit_code": 255, "reason": "", "advice": ""},
    "a code of text": {"contract_version": 1, "status": "succeeded", "exit_code": "0", "reason": "", "advice": ""},
    "a failure": {"contract_version": 1, "status": "failed", "exit_code": 64, "reason": "forged", "advice": ""},
}  # fmt: skip


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_result_of_a_finished_run_that_is_none_is_not_returned(tmp_path, forged):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(forged))
    assert read_success(path) is None
    path.write_text(json.dumps({**forged, "exit_code": 0, "status": "succeeded"}))
    assert read_success(path)["exit_code"] == 0


def test_run_whose_every_record_is_damaged_goes_on_from_its_checkpoint_and_completes(lora_config):
    out = Path(lora_config["output_dir"])
    assert run_here(lora_config, OMP_NUM_THREADS="1")["exit_code"] == 0
    (out / ".complete").unlink()
    contents = [*DAMAGES.values(), None]
    for index, name in enumerate(RECORDS):
        damage(out / name, contents[index])
    for path in (out / ".sft.lock", out / "training_logs.jsonl", out / "report.html"):
        damage(path, b"\xff\x00")
    result = run_here(lora_config, OMP_NUM_THREADS="1")
    assert (result["exit_code"], result["resumed_from_step"]) == (0, 8)
    assert any("set aside" in notice for notice in result["notices"])
    assert (out / ".complete").exists()
