"""A run in which nothing was learned is no success, and one that used little of its data says so."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from airflow_provider_sft.contract.errors import ConfigError, DivergedError
from tests import tiny
from tests.trainer.here import run_here, train_here
from trainer.checkpoints import CheckpointStore
from trainer.engine import LEFT_FILE


@pytest.fixture
def config(tmp_path, tiny_model_dir):
    tweets = tiny.write_tweets(tmp_path / "tweets.jsonl", rows=16)
    return {**tiny.lora_config(tiny_model_dir, tweets, tmp_path / "out"), "max_steps": 2, "save_steps": 1}


def notices_of(tmp_path):
    path = tmp_path / "scratch" / "notices-0"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


FULL = {"peft_method": None, "torch_dtype": "bfloat16"}


def test_full_tuning_that_leaves_every_bit_ends_with_68_and_what_to_change(tmp_path, config):
    with pytest.raises(
        DivergedError, match="all 21 trained tensors are bit-identical to the start"
    ) as caught:
        train_here({**config, **FULL, "learning_rate": 1e-12, "save_strategy": "no"}, tmp_path / "scratch")
    assert "Raise learning_rate (it is 1e-12)" in caught.value.advice


def test_full_tuning_that_leaves_some_tensors_says_how_many(tmp_path, config):
    train_here({**config, **FULL, "learning_rate": 1e-5}, tmp_path / "scratch")
    start, end = (load_file(d / "model.safetensors") for d in (tiny_dir(config), tmp_path / "out"))
    same = sum(torch.equal(start[name].bfloat16(), end[name]) for name in end)
    assert 0 < same < 21
    assert f"{same} of 21 trained tensors are bit-identical" in "".join(notices_of(tmp_path))


def tiny_dir(config):
    return Path(config["model_name_or_path"])


def test_resumed_run_is_compared_with_the_start_of_the_run(tmp_path, config):
    slow = {**config, **FULL, "learning_rate": 1e-12}
    with pytest.raises(DivergedError):
        train_here(slow, tmp_path / "scratch")
    checkpoint = CheckpointStore(tmp_path / "out").newest()
    assert len(json.loads((checkpoint / LEFT_FILE).read_text())["unchanged"]) == 21
    with pytest.raises(DivergedError, match="all 21 trained tensors"):
        train_here(slow, tmp_path / "scratch2", resume_from=checkpoint)


def test_resumed_run_keeps_what_the_attempt_before_learned(tmp_path, config):
    train_here(config, tmp_path / "scratch")
    frozen = {**config, "learning_rate": 1e-30}  # B stays as the checkpoint has it
    checkpoint = tmp_path / "out" / "checkpoint-1"
    assert train_here(frozen, tmp_path / "scratch2", resume_from=checkpoint)["steps"] == 2


@pytest.mark.parametrize("keys", [{"warmup_steps": 4}, {"warmup_ratio": 0.9}])
def test_warmup_as_long_as_the_epochs_ends_with_64_before_the_model_loads(tmp_path, config, keys):
    epochs = {"max_steps": -1, "num_train_epochs": 1, **keys}
    with pytest.raises(ConfigError, match="takes 4 of the run's 4 steps"):
        train_here({**config, **epochs}, tmp_path / "scratch")
    assert not (tmp_path / "out" / "training_logs.jsonl").exists()


def test_fifth_of_the_rows_left_out_is_a_notice_with_figures(tmp_path, config):
    data = tmp_path / "tweets.jsonl"
    rows = data.read_text().splitlines()
    data.write_text("\n".join([*rows[:8], *(json.dumps({"output": f"no template {n}"}) for n in range(4))]))
    train_here(config, tmp_path / "scratch")
    (notice,) = [sentence for sentence in notices_of(tmp_path) if "training rows" in sentence]
    assert notice.startswith(
        "Of 12 training rows, 4 were left out (4 because response_template '\\n### Label:'"
    )
    assert "line 9" in notice


def test_rows_cut_by_max_length_are_a_notice_with_figures(tmp_path, config):
    whole = {**config, "response_template": None, "max_seq_length": 8, "do_dataprocessing_only": True}
    train_here(whole, tmp_path / "scratch")
    assert "Of 16 training rows, 16 were cut to 8 tokens" in "".join(notices_of(tmp_path))


def test_row_that_ends_with_the_template_is_trained_and_a_notice(tmp_path, config):
    data = tmp_path / "tweets.jsonl"
    with data.open("a") as lines:
        lines.write(json.dumps({"output": "no answer\n### Label:"}) + "\n")
    train_here({**config, "do_dataprocessing_only": True}, tmp_path / "scratch")
    (notice,) = [sentence for sentence in notices_of(tmp_path) if "no answer" in sentence]
    assert notice.startswith("1 training rows have no answer, first ")
    assert "line 17: only the end of sequence is trained" in notice


def test_run_that_only_prepares_data_says_so_in_its_reason(config):
    result = run_here({**config, "do_dataprocessing_only": True})
    assert (result["exit_code"], result["reason"]) == (0, "The data is prepared.")


def test_summed_loss_equals_fms_hf_tunings_steps(tmp_path, config):
    """Its loss: the sum over a micro-batch, divided by gradient_accumulation_steps."""
    config = {
        **config,
        "peft_method": None,
        "per_device_train_batch_size": 2,
        "lr_scheduler_type": "constant",
    }
    config |= {"gradient_accumulation_steps": 2, "optim": "sgd", "max_grad_norm": 0, "learning_rate": 1e-4}
    mean = train_here({**config, "output_dir": str(tmp_path / "mean"), "max_steps": 1}, tmp_path / "s1")
    train_here({**config, "enable_reduce_loss_sum": True, "max_steps": 1}, tmp_path / "s2")
    start = load_file(tiny_dir(config) / "model.safetensors")
    steps = [
        {
            name: start[name] - weight
            for name, weight in load_file(tmp_path / out / "model.safetensors").items()
        }
        for out in ("mean", "out")
    ]
    factor = mean["trained_tokens"] / 2
    for name, step in steps[0].items():
        torch.testing.assert_close(steps[1][name], step * factor, rtol=2e-2, atol=2e-6)


def test_gradient_that_dropout_drives_to_zero_is_not_blamed_on_the_learning_rate_only(tmp_path, config):
    dropped = {**config, "lora_dropout": 0.999999, "max_steps": 4}
    with pytest.raises(DivergedError, match="The gradient is 0 at step") as caught:
        train_here(dropped, tmp_path / "scratch")
    assert "lora_dropout" in caught.value.advice


@pytest.mark.parametrize("key", ["gradient_checkpointing", "gradient_checkpointing_kwargs"])
def test_key_that_transformers_renames_leaves_no_warning_in_the_log(tmp_path, config, key):
    value = {"use_reentrant": False} if key.endswith("kwargs") else True
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", FutureWarning)
        train_here({**config, key: value, "do_dataprocessing_only": True}, tmp_path / "scratch")
    assert not [warning for warning in said if "is deprecated" in str(warning.message)]
