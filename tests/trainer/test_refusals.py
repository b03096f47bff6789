"""Runs that must not start, or not end well: the exit code, the sentence, and nothing lost."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time

import pytest

from airflow_provider_sft.contract.errors import ConfigError, DataError, DivergedError
from airflow_provider_sft.contract.settings import resolve_config
from tests.trainer.export.adapters import save_base
from tests.trainer.here import run_here, train_here
from tests.trainer.test_lock import holding
from trainer.preflight import check_export


def test_wrong_config_ends_64_without_importing_torch(tmp_path, lora_config):
    config = json.dumps({**lora_config, "learning_rte": 1})
    (tmp_path / "c.json").write_text(config)
    code = (
        "import sys, trainer.__main__ as m; code = m.main({'SFT_TRAINER_CONFIG_JSON_PATH': sys.argv[1]});"
        "sys.stdout = sys.__stdout__; print(code, sorted({'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "c.json")], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "64 []"
    assert "Unknown config key 'learning_rte'. Did you mean 'learning_rate'?" in done.stderr


def test_missing_model_ends_66_before_anything_is_written(lora_config, tmp_path):
    result = run_here({**lora_config, "model_name_or_path": str(tmp_path / "nowhere")})
    assert result["exit_code"] == 66
    assert f"model_name_or_path '{tmp_path / 'nowhere'}' does not exist" in result["reason"]
    assert not (tmp_path / "out").exists()


def test_export_that_no_vllm_takes_on_gpt2_ends_69_before_a_rank_starts(lora_config, tmp_path):
    config = lora_config | {"model_name_or_path": str(save_base(tmp_path / "gpt2", "gpt2"))}
    asked = config | {"lora_post_process_for_vllm": True}
    result = run_here(asked)
    assert result["exit_code"] == 69
    assert (
        "no measured release of vLLM takes this adapter: vLLM takes no LoRA for GPT2LMHeadModel"
        in result["reason"]
    )
    assert "Set vllm_export to 'merged'" in result["advice"]
    assert not (tmp_path / "out").exists()
    check_export(resolve_config(asked | {"vllm_export": "merged"}))


def test_missing_data_ends_66(lora_config, tmp_path):
    result = run_here({**lora_config, "training_data_path": str(tmp_path / "nowhere.jsonl")})
    assert result["exit_code"] == 66
    assert "nowhere.jsonl" in result["reason"]


def test_absent_response_template_ends_65_before_step_1(lora_config, tmp_path):
    with pytest.raises(DataError, match="'### Answer:'"):
        train_here({**lora_config, "response_template": "### Answer:"}, tmp_path / "scratch")
    assert not (tmp_path / "out" / "progress.json").exists()


def test_malformed_line_ends_65_with_file_and_line(lora_config, tweets, tmp_path):
    lines = tweets.read_text().splitlines()
    lines[16] = '{"output": "cut'
    tweets.write_text("\n".join(lines))
    with pytest.raises(DataError, match=re.escape(f"{tweets} line 17")):
        train_here(lora_config, tmp_path / "scratch")


def test_fsdp_for_one_process_ends_64(lora_config, tmp_path):
    with pytest.raises(ConfigError, match="'fsdp' is 'full_shard', and this run is one process"):
        train_here({**lora_config, "fsdp": "full_shard"}, tmp_path / "scratch")


def test_package_that_is_not_installed_here_ends_64(run_trainer, lora_config):
    config = {**lora_config, "deepspeed": {"zero_optimization": {"stage": 2}}}
    run = run_trainer(config, code=64)
    assert "asks for a package that is not installed here" in run.result["reason"]


def test_full_tuning_at_a_learning_rate_of_1e12_is_no_success_either(lora_config, tmp_path):
    with pytest.raises(DivergedError, match="training diverged"):
        train_here({**lora_config, "learning_rate": 1e12, "peft_method": "none"}, tmp_path / "scratch")
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_learning_rate_of_1e12_ends_68_and_leaves_no_model(run_trainer, lora_config, tmp_path):
    run = run_trainer({**lora_config, "learning_rate": 1e12}, code=68)
    assert (
        "nothing can be learned any more" in run.result["reason"]
        or "training diverged" in run.result["reason"]
    )
    assert "learning_rate" in run.result["advice"]
    assert not (tmp_path / "out" / ".complete").exists()
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_weights_of_nan_end_68_at_step_1(lora_config, tiny_model_dir, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    model.lm_head.weight.data[0] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "nan")
    with pytest.raises(DivergedError, match="at step 1: training diverged"):
        train_here({**lora_config, "model_name_or_path": str(tmp_path / "nan")}, tmp_path / "scratch")


def test_second_run_on_a_living_runs_directory_ends_207(lora_config, tmp_path):
    (tmp_path / "out").mkdir()
    with holding(tmp_path / "out"):
        result = run_here(lora_config)
    assert result["exit_code"] == 207
    assert "is held by another run (dag/run/task/-1)" in result["reason"]


def test_read_only_output_is_refused_before_the_model_loads(lora_config):
    result = run_here({**lora_config, "output_dir": "/proc/out"})
    assert result["exit_code"] == 77
    assert "output_dir '/proc/out' cannot be written by user" in result["reason"]


def test_pickled_weights_are_refused(lora_config, tiny_model_dir, tmp_path):
    import shutil

    import torch

    shutil.copytree(tiny_model_dir, tmp_path / "bin")
    (tmp_path / "bin" / "model.safetensors").unlink()
    torch.save({"w": torch.zeros(1)}, tmp_path / "bin" / "pytorch_model.bin")
    result = run_here({**lora_config, "model_name_or_path": str(tmp_path / "bin")})
    assert result["exit_code"] == 66
    assert "safetensors" in result["reason"]


def wait_for(condition, timeout_s: float = 120, poll_s: float = 0.05) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(poll_s)
