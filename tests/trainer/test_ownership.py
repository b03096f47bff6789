"""Whose an output_dir is: one test a row of the table, and what happens to what is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from airflow_provider_sft.contract.errors import ConfigError
from airflow_provider_sft.contract.settings import resolve_config
from tests.trainer.here import run_here
from tests.trainer.runs import RUN_ID, decide, identify, leave_finished, leave_unfinished
from trainer.digests import Digests
from trainer.ownership import Action, describe_run_id
from trainer.run_dir import RunDir
from trainer.takeover import Directory, complete, make_room, take_directory


def take(config, decision):
    directory = Directory(RunDir(Path(config["output_dir"])), identify(config), Digests(), decision)
    return take_directory(directory, resolve_config(config))


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_directory_with_nothing_or_only_scratch_of_ours_starts(lora_config, tmp_path):
    assert decide(lora_config).action is Action.START
    (tmp_path / "out" / ".staging").mkdir(parents=True)
    assert decide(lora_config).action is Action.START


@pytest.mark.parametrize("leave", [leave_unfinished, leave_finished])
@pytest.mark.parametrize("run_id", ["other/run/task", ""])
def test_directory_of_another_run_is_refused_in_words_and_untouched(lora_config, leave, run_id):
    out = leave(lora_config)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ConfigError, match="belongs to DAG sales, run 2026-01-01, task tune") as refused:
        decide(lora_config, run_id)
    assert ("overwrite" in str(refused.value)) is (leave is leave_finished)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_finished_run_with_whole_files_reports_its_result(lora_config):
    leave_finished(lora_config)
    decision = decide(lora_config)
    assert (decision.action, decision.result["steps"]) == (Action.REPORT_FINISHED, 8)


@pytest.mark.parametrize("damage", ["gone", "flipped", "another run's"])
def test_finished_run_whose_model_is_not_as_it_was_is_made_again(lora_config, damage):
    weights = leave_finished(lora_config) / "adapter_model.safetensors"
    if damage == "gone":
        weights.unlink()
    else:
        weights.write_bytes(b"weightz" if damage == "flipped" else b"of another run")
    decision = decide(lora_config)
    assert decision.action is Action.REPAIR
    assert "adapter_model.safetensors" in decision.sentence


def test_finished_run_that_only_became_longer_is_extended_and_its_result_kept(lora_config):
    out = leave_finished(lora_config, checkpoints=(4, 8))
    longer = {**lora_config, "max_steps": 12}
    decision = decide(longer)
    assert decision.action is Action.EXTEND
    assert "extended from checkpoint-8: max_steps is 12 and was 8" in decision.sentence
    take(longer, decision)
    assert json.loads((out / "result-step-8.json").read_text())["steps"] == 8
    assert {"checkpoint-4", "checkpoint-8"} <= set(names(out))


def test_longer_run_without_a_checkpoint_is_refused_with_the_way(lora_config):
    leave_finished(lora_config)
    with pytest.raises(
        ConfigError, match=r"no checkpoint to go on from.*output_dir of its own, or set 'overwrite'"
    ):
        decide({**lora_config, "max_steps": 12})


def test_finished_run_of_another_config_is_refused_with_key_and_values(lora_config):
    out = leave_finished(lora_config, checkpoints=(8,))
    with pytest.raises(ConfigError, match=r"learning_rate is 0.5 and was 0.01.*'overwrite'") as refused:
        decide({**lora_config, "learning_rate": 0.5})
    assert f'"resume_from_checkpoint": "{out}/checkpoint-8"' in str(refused.value)


def test_unfinished_run_resumes(lora_config):
    leave_unfinished(lora_config, checkpoints=(4,))
    assert decide(lora_config).action is Action.RESUME


def test_unfinished_other_run_that_saved_nothing_is_taken_over(lora_config):
    leave_unfinished(lora_config)
    decision = decide({**lora_config, "learning_rate": 0.5})
    assert decision.action is Action.START
    assert "learning_rate is 0.5 and was 0.01" in decision.sentence


def test_unfinished_run_resumes_with_a_key_that_leaves_checkpoints_as_they_are(lora_config):
    out = leave_unfinished(lora_config, checkpoints=(4,))
    changed = {**lora_config, "save_steps": 2, "max_steps": 20}
    decision = decide(changed)
    assert decision.action is Action.RESUME
    assert "save_steps is 2 and was 4" in decision.sentence
    take(changed, decision)
    assert "checkpoint-4" in names(out)


@pytest.mark.parametrize("what", ["learning_rate", "max_steps", "data", "model", "template"])
def test_unfinished_other_run_sets_its_checkpoints_aside_and_names_what_decided(lora_config, what, tmp_path):
    (tmp_path / "template.jinja").write_text("{{ messages }}")
    config = {**lora_config, "chat_template_path": str(tmp_path / "template.jinja")}
    shutil.copytree(config["model_name_or_path"], tmp_path / "model")
    config["model_name_or_path"] = str(tmp_path / "model")
    out = leave_unfinished(config, checkpoints=(4,))
    if what in config:
        config = {**config, what: 3}
    else:
        path = {"data": config["training_data_path"], "model": tmp_path / "model/tokenizer.json"}.get(what)
        with open(path or tmp_path / "template.jinja", "a") as file:
            file.write(" ")
    decision = decide(config)
    assert decision.action is Action.START_OVER
    named = {
        "data": "data set 1, file 1",
        "model": "model_name_or_path/tokenizer.json",
        "template": "chat_template_path",
    }
    assert named.get(what, what) in decision.sentence
    take(config, decision)
    assert [path.name for path in (out / ".superseded").glob("*/*")] == ["checkpoint-4"]
    assert "checkpoint-4" not in names(out)
    complete(RunDir(out), {"model_path": str(out)})
    assert not (out / ".superseded").exists()


def test_unfinished_other_run_without_a_run_id_is_refused(lora_config):
    leave_unfinished(lora_config, checkpoints=(4,), run_id="")
    for run_id in ("", RUN_ID):
        with pytest.raises(ConfigError, match="unfinished run of another config: learning_rate") as refused:
            decide({**lora_config, "learning_rate": 0.5}, run_id)
        assert "overwrite" not in str(refused.value)


@pytest.mark.parametrize(("key", "value"), [("logging_steps", 7), ("gradient_checkpointing", True), ("hang_timeout_s", 9), ("torch_compile_mode", "default")])  # fmt: skip
def test_key_about_watching_or_fitting_changes_nothing(lora_config, key, value):
    leave_finished(lora_config)
    assert decide({**lora_config, key: value}).action is Action.REPORT_FINISHED


def test_former_name_and_default_of_a_key_are_the_same_run(lora_config):
    leave_finished(lora_config)
    now = {key: value for key, value in lora_config.items() if key != "torch_dtype"}
    assert decide({**now, "dtype": "float32", "lora_alpha": 32}).action is Action.REPORT_FINISHED


@pytest.mark.parametrize(
    ("run_id", "words"),
    [
        ("d/r/t", "DAG d, run r, task t"),
        ("d/r/t/3", "DAG d, run r, task t, map index 3"),
        ("mine", "run 'mine'"),
    ],
)
def test_run_id_is_said_in_words(run_id, words):
    assert describe_run_id(run_id) == words


def test_overwrite_replaces_a_finished_run_and_never_what_the_run_reads(lora_config, tmp_path):
    out = leave_finished(lora_config, checkpoints=(8,))
    data = Path(shutil.copy(lora_config["training_data_path"], out / "checkpoint-8" / "rows.jsonl"))
    config = {**lora_config, "training_data_path": f"{out}/checkpoint-*/rows.jsonl", "overwrite": True}
    result = run_here(config, SFT_RUN_ID="other/run/task")
    assert result["exit_code"] == 64
    assert data.exists()
    assert (out / "adapter_model.safetensors").exists()


def test_overwrite_leaves_what_this_very_run_has_left(lora_config):
    out = leave_unfinished(lora_config, checkpoints=(4,))
    decision = make_room(RunDir(out), identify(lora_config), lora_config, lambda: decide(lora_config))
    assert decision.action is Action.RESUME
    assert (out / "checkpoint-4").exists()


def test_overwrite_removes_what_another_config_has_left(lora_config):
    out = leave_unfinished(lora_config, checkpoints=(4,))
    changed = {**lora_config, "save_steps": 2}
    assert make_room(RunDir(out), identify(changed), changed, lambda: decide(changed)).action is Action.START
    assert names(out) == []
