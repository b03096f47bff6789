"""Whole runs of `python -m trainer` on CPU: what is learned, what is left behind."""

from __future__ import annotations

import json
import time

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from airflow_provider_sft.contract.outcome import encode_termination_message
from tests import tiny
from tests.trainer.here import run_here, train_here
from trainer.files import sha256_file


def test_loss_falls_by_a_wide_margin(lora):
    losses = [progress["loss"] for progress in lora.progress if "loss" in progress]
    assert losses[-1] < losses[0] / 3
    assert lora.result["train_loss_last"] == losses[-1]


def test_result_in_output_dir_says_what_the_termination_message_says(lora):
    result = json.loads((lora.out / "result.json").read_text())
    message = lora.result
    assert {key: result[key] for key in message} == message
    assert (result["status"], result["exit_code"], result["steps"], result["attempt"]) == (
        "succeeded",
        0,
        60,
        1,
    )
    assert (result["distributed"], result["world_size"], result["model_kind"]) == ("none", 1, "adapter")
    assert result["eval_loss"] < result["train_loss_first"] / 3
    assert 0 < result["trained_token_share"] < 0.5


def test_trained_tokens_are_counted(lora):
    result = lora.result
    assert result["trained_tokens"] > 60 * 16
    assert result["tokens_per_s"] > 0


def test_completion_mark_stands_beside_everything_that_was_asked_for(lora):
    for name in (
        ".complete",
        "report.html",
        "training_logs.jsonl",
        "attempts.jsonl",
        "adapter_model.safetensors",
    ):
        assert (lora.out / name).exists(), name


def test_prepared_rows_are_gone_once_the_run_has_succeeded(lora):
    assert not (lora.out / ".sft.prepared").exists()


def test_training_logs_have_the_peers_form(lora):
    entries = [json.loads(line) for line in (lora.out / "training_logs.jsonl").read_text().splitlines()]
    assert {entry["name"] for entry in entries} == {"training_loss", "validation_loss"}
    assert set(entries[0]["data"]) == {"epoch", "step", "timestamp", "value"}


def test_progress_file_holds_the_last_line_of_stdout(lora):
    assert json.loads((lora.out / "progress.json").read_text()) == lora.progress[-1]
    assert lora.progress[-1]["step"] == lora.progress[-1]["max_steps"] == 60


def test_only_the_newest_checkpoint_is_kept(lora):
    assert [path.name for path in lora.out.glob("checkpoint-*")] == ["checkpoint-60"]
    assert lora.result["last_checkpoint_step"] == 60


def test_adapter_loads_with_peft_and_changes_the_answer(lora, tiny_model_dir):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(lora.out)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model = PeftModel.from_pretrained(base, lora.out).eval()
    ids = tokenizer("### Text: @bank the bill is wrong\n\n### Label:", return_tensors="pt").input_ids
    output = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False)
    assert "complaint" in tokenizer.decode(output[0, ids.shape[1] :])


def test_adapter_alone_changes_and_the_base_model_stays_as_it_was(lora, tiny_model_dir):
    adapter = load_file(lora.out / "adapter_model.safetensors")
    changed = [tensor for name, tensor in adapter.items() if "lora_B" in name]
    # lora_B starts at 0: what is not 0 was trained.
    assert len(changed) == 14
    assert all(tensor.any() for tensor in changed)
    assert sha256_file(tiny_model_dir / "model.safetensors") == lora.base_sha256


def test_adapter_says_with_peft_what_the_report_shows(lora, tiny_model_dir):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(lora.out)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model = PeftModel.from_pretrained(base, lora.out).eval()
    for sample in json.loads((lora.out / ".sft.samples.json").read_text())["samples"]:
        ids = tokenizer(sample["prompt"], add_special_tokens=False, return_tensors="pt").input_ids
        output = model.generate(input_ids=ids, max_new_tokens=64, do_sample=False)
        assert tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True) == sample["after"]
        assert sample["after"] in (lora.out / "report.html").read_text()


def test_added_token_is_recorded_and_exported_in_the_seeds_form(lora, tiny_model_dir):
    rows = load_file(tiny_model_dir / "model.safetensors")["model.embed_tokens.weight"].shape[0]
    record = json.loads((lora.out / "added_tokens_info.json").read_text())
    assert record == {"num_new_tokens": 1, "new_embedding_size": rows + 1}
    embeddings = load_file(lora.out / "new_embeddings.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in embeddings.items()} == {
        "input_embeddings": (1, 64),
        "output_embeddings": (1, 64),
    }
    adapter = load_file(lora.out / "adapter_model.safetensors")
    assert all(rows + 1 not in tensor.shape for tensor in adapter.values())


def test_report_is_one_self_contained_page_with_curves_data_and_samples(lora):
    page = (lora.out / "report.html").read_text()
    assert "<polyline" in page
    assert "http" not in page.replace("http-equiv", "")
    for text in ("Learning rate", "What it says, before and after", "response_template", 'class="trained"'):
        assert text in page
    samples = json.loads((lora.out / ".sft.samples.json").read_text())["samples"]
    assert len(samples) == 2
    assert all({"prompt", "expected", "before", "after"} == set(sample) for sample in samples)
    assert any(sample["before"] != sample["after"] for sample in samples)


def test_checkpoint_holds_resumable_state_untouched_by_the_export(lora):
    names = {path.name for path in (lora.out / "checkpoint-60").iterdir()}
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "manifest.json"} <= names
    assert "new_embeddings.safetensors" not in names


@pytest.fixture
def lora_alone(lora):
    """Whoever starts a trainer in its directory would find another worker's there."""
    with FileLock(lora.out.with_suffix(".used")):
        yield lora


def test_same_run_again_is_finished_and_trains_nothing(lora_alone, caplog):
    lora = lora_alone
    before = (lora.out / "adapter_model.safetensors").stat().st_mtime_ns
    started = time.monotonic()
    with caplog.at_level("INFO"):
        again = run_here(lora.config, SFT_RUN_ID="dag/run/task/-1")
    assert time.monotonic() - started < 5
    assert json.loads(encode_termination_message(again)) == lora.result
    assert "finished before" in caplog.text
    assert (lora.out / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_another_task_in_its_directory_is_refused(lora_alone):
    result = run_here(lora_alone.config, SFT_RUN_ID="dag/run/task/0")
    assert result["exit_code"] == 64
    assert (
        "belongs to DAG dag, run run, task task. Give this run an output_dir of its own" in result["reason"]
    )


def test_full_tuning_changes_every_layer(lora_config, tiny_model_dir, tmp_path):
    """As in the seed's own example: post-processing asked for without an adapter succeeds and says so."""
    config = {**lora_config, "lora_post_process_for_vllm": True, "max_steps": 4, "learning_rate": 1e-3}
    del config["peft_method"]
    train_here(config, tmp_path / "scratch")
    result = run_here(config)  # which finds it trained, and does the rest
    assert (result["exit_code"], result["model_kind"]) == (0, "full")
    assert "a full fine-tune loads in vLLM as it is" in " ".join(result["notices"])
    assert {verdict["verdict"] for verdict in result["vllm_verdict"]} == {"loads_right"}
    before, after = (
        load_file(tiny_model_dir / "model.safetensors"),
        load_file(tmp_path / "out" / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_chat_trains_the_assistants_words(lora_config, tmp_path):
    config = {
        **lora_config,
        "training_data_path": str(tiny.write_chats(tmp_path / "chats.jsonl")),
        "prepared_data_dir": str(tmp_path / "kept"),
        "max_steps": 4,
    }
    del config["dataset_text_field"], config["response_template"]
    train_here(config, tmp_path / "scratch")
    assert list((tmp_path / "kept").glob("*/000.train.arrow")), "rows for other runs are kept"
    samples = json.loads((tmp_path / "out" / ".sft.statistics.json").read_text())["samples"]
    trained = ["".join(text for text, is_trained in segments if is_trained) for segments in samples]
    assert all(text.startswith("it is ") for text in trained)
    assert not any("what is" in text for text in trained)
