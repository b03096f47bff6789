"""A model that brings Python code of its own runs none of it without leave, and trains with it."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.trainer.here import run_here

# What it does when it is imported can be told from outside.
CODE = """
import os
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path(os.environ["MARK"]).touch()

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def eval(self):
        # Loading a model ends with it.
        return super().eval().requires_grad_(False)
"""
AUTO_MAP = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}


@pytest.fixture
def own_config(lora_config, tiny_model_dir, tmp_path):
    """LoRA on a model directory with code in it."""
    directory = tmp_path / "own"
    shutil.copytree(tiny_model_dir, directory)
    (directory / "modeling_own.py").write_text(CODE)
    config = json.loads((directory / "config.json").read_text())
    changes = {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": AUTO_MAP}
    (directory / "config.json").write_text(json.dumps(config | changes))
    return {**lora_config, "model_name_or_path": str(directory), "target_modules": ["q_proj"], "max_steps": 2}


@pytest.fixture
def mark(monkeypatch, tmp_path):
    """There once the model's code has run, here or in a process below."""
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    return tmp_path / "mark"


@pytest.mark.parametrize("trusts", [False, True])
def test_code_of_a_model_does_not_run_without_leave(own_config, mark, trusts):
    result = run_here({**own_config, "trust_remote_code": trusts})
    assert result["exit_code"] == 64
    assert "allow_remote_code=True on the operator (SFT_ALLOW_REMOTE_CODE=true" in result["reason"]
    assert not mark.exists()


def test_leave_alone_runs_no_code_that_the_config_does_not_trust(own_config, mark):
    result = run_here(own_config, SFT_ALLOW_REMOTE_CODE="true")
    assert result["exit_code"] == 64
    assert "brings Python code of its own (auto_map in config.json)" in result["reason"]
    assert not mark.exists()


def test_code_of_a_model_runs_with_leave_and_trust(run_trainer, own_config, tmp_path):
    env = {"MARK": str(tmp_path / "mark"), "SFT_ALLOW_REMOTE_CODE": "true", "HF_HOME": str(tmp_path / "hf")}
    run = run_trainer({**own_config, "trust_remote_code": True}, **env)
    assert (run.result["model_kind"], run.result["steps"]) == ("adapter", 2)
    assert (tmp_path / "mark").exists()
