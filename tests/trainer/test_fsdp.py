"""Checkpoints of sharded runs: real FSDP2 over gloo, two processes on CPU.

accelerate turns FSDP into DDP where there is no GPU; here an injected sitecustomize tells its states otherwise.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from airflow_provider_sft.contract.errors import ConfigError
from tests.trainer.here import train_here
from tests.trainer.test_ranks import TWO
from tests.trainer.test_resume import assert_bit_equal, weights
from trainer.checkpoints import MANIFEST_FILE, find_flaw

FSDP_ON_CPU = """
import os
if "RANK" in os.environ:
    import accelerate.state
    from accelerate.utils import DistributedType

    def as_fsdp(init):
        def wrapped(self, *args, **kwargs):
            init(self, *args, **kwargs)
            self.distributed_type = DistributedType.FSDP
            if kwargs.get("fsdp_plugin") is not None:
                self.fsdp_plugin = kwargs["fsdp_plugin"]
        return wrapped

    for kind in (accelerate.state.PartialState, accelerate.state.AcceleratorState):
        kind.__init__ = as_fsdp(kind.__init__)
"""


@pytest.fixture
def fsdp_env(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(FSDP_ON_CPU)
    return {
        **TWO,
        "PYTHONPATH": str(tmp_path),
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
    }


@pytest.fixture
def config(lora_config):
    """`hang_timeout_s`: a wrong set-up of FSDP waits for ever."""
    two = {"accelerate_launch_args": {"num_processes": 2}, "hang_timeout_s": 120}
    return {**lora_config, **two, "max_steps": 12, "save_total_limit": 2}


def optimizer_files(checkpoint):
    files = json.loads((checkpoint / MANIFEST_FILE).read_text())["files"]
    return sorted(name for name in files if "optimizer" in name or "fsdp" in name)


@pytest.mark.parametrize(
    ("state", "method", "expected"),
    [
        ("FULL_STATE_DICT", "none", ["optimizer.bin", "pytorch_model_fsdp.bin"]),
        (
            "SHARDED_STATE_DICT",
            "lora",
            [
                f"{directory}/{name}"
                for directory in ("optimizer_0", "pytorch_model_fsdp_0")
                for name in (".metadata", "__0_0.distcp", "__1_0.distcp")
            ],
        ),
    ],
)
def test_sharded_run_rotates_its_checkpoints_and_resumes_bit_equal(
    config, fsdp_env, run_trainer, tmp_path, state, method, expected
):
    out, env = tmp_path / "out", fsdp_env | {"FSDP_STATE_DICT_TYPE": state}
    config |= {"peft_method": method, "add_special_tokens": ["complaint"]}
    first = run_trainer(config, **env)
    assert (first.result["distributed"], first.result["world_size"]) == ("fsdp2", 2)
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-8"]
    assert optimizer_files(out / "checkpoint-8") == expected

    undisturbed = weights(out)
    (out / ".complete").unlink()
    shutil.rmtree(out / "checkpoint-12")
    again = run_trainer(config, **env)
    assert again.result["resumed_from_step"] == 8
    assert_bit_equal(weights(out), undisturbed)


def leave_checkpoint(directory, *, processes, optimizer="optimizer.pt", more=()):
    """As a run of transformers leaves one, as far as can be told before it is loaded."""
    directory.mkdir()
    save_file({"w": torch.zeros(1)}, directory / "adapter_model.safetensors")
    (directory / "trainer_state.json").write_text('{"global_step": 4}')
    for name in (optimizer, *more, *(f"rng_state_{rank}.pth" for rank in range(processes))):
        torch.save({}, directory / name)
    return directory


def test_checkpoint_of_fsdp_is_refused_by_a_run_without_it(lora_config, tmp_path):
    checkpoint = leave_checkpoint(
        tmp_path / "checkpoint-4", processes=2, optimizer="optimizer.bin", more=["pytorch_model_fsdp.bin"]
    )
    assert find_flaw(checkpoint) is None  # what the parent asks
    config = {**lora_config, "resume_from_checkpoint": str(checkpoint)}
    with pytest.raises(ConfigError) as refused:
        train_here(config, tmp_path / "scratch", resume_from=checkpoint)
    assert f"{checkpoint} was written by FSDP and this run does not use it" in refused.value.reason
    assert "'resume_from_checkpoint': false to start again" in refused.value.reason


def test_checkpoint_without_fsdp_is_refused_by_a_run_with_it(config, fsdp_env, run_trainer, tmp_path):
    checkpoint = leave_checkpoint(tmp_path / "checkpoint-4", processes=2)
    run = run_trainer({**config, "resume_from_checkpoint": str(checkpoint)}, code=64, **fsdp_env)
    assert "holds no pytorch_model_fsdp_0, which FSDP with SHARDED_STATE_DICT resumes" in run.result["reason"]
