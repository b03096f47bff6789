"""Checkpoints that others left: resumed from after the checks that are possible, and never executed."""

from __future__ import annotations

import os

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from tests.trainer.here import run_here, train_here
from trainer.checkpoints import CheckpointStore
from trainer.progress import read_history

ROWS = [{"input_ids": list(range(10, 30)), "labels": list(range(10, 30))}] * 16


@pytest.fixture
def transformers_run(lora_config, tiny_model_dir, tmp_path):
    """`output_dir` as plain transformers and peft leave it after step 4 of 8."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]))
    args = TrainingArguments(
        str(tmp_path / "out"), max_steps=4, save_steps=4, report_to="none", use_cpu=True, disable_tqdm=True
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    Trainer(model, args, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer).train()
    return tmp_path / "out"


def test_run_of_plain_transformers_is_resumed(transformers_run, lora_config, tmp_path):
    names = {path.name for path in (transformers_run / "checkpoint-4").iterdir()}
    assert {"training_args.bin", "optimizer.pt"} <= names
    assert "manifest.json" not in names
    newest = CheckpointStore(transformers_run).newest_valid(pytest.fail)
    facts = train_here(lora_config, tmp_path / "scratch", resume_from=newest)
    assert (newest.name, facts["steps"]) == ("checkpoint-4", 8)
    assert [entry["step"] for entry in read_history(transformers_run)] == [5, 6, 7, 8]


class Crafted:
    def __init__(self, trap):
        self.trap = trap

    def __reduce__(self):
        return os.system, (f"touch {self.trap}",)


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "pytorch_model.bin"])
def test_crafted_checkpoint_that_the_config_names_is_66_and_its_code_does_not_run(
    transformers_run, lora_config, tmp_path, name
):
    checkpoint = transformers_run / "checkpoint-4"
    torch.save({"state": Crafted(tmp_path / "trap")}, checkpoint / name)
    result = run_here({**lora_config, "resume_from_checkpoint": str(checkpoint)})
    assert result["exit_code"] == 66
    assert f"{name} names posix.system, which is no part of a tensor" in result["reason"]
    assert not (tmp_path / "trap").exists()


def test_crafted_checkpoint_found_in_output_dir_is_skipped_with_a_sentence(transformers_run, tmp_path):
    checkpoint = transformers_run / "checkpoint-4"
    torch.save(Crafted(tmp_path / "trap"), checkpoint / "scheduler.pt")
    said = []
    assert CheckpointStore(transformers_run).newest_valid(said.append) is None
    assert said[0].startswith("Skipped checkpoint-4: scheduler.pt names posix.system")
    assert not (tmp_path / "trap").exists()


def test_ranks_load_nothing_but_tensors_whoever_asks(start_trainer, lora_config):
    """Shards hold pickles that torch.distributed.checkpoint loads without `weights_only`."""
    from trainer.launch import plan_launch, rank_environment

    launch = plan_launch({}, {}, gpus=0, scratch_dir=None)
    env = rank_environment(launch, {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "0"}, "/scratch")
    assert env["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
