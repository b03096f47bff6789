"""torch.compile where every batch has another length: compiled once or twice, not once a length."""

import os
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.here import train_here


@pytest.fixture
def compiled_config(lora_config):
    return {**lora_config, "save_strategy": "no", "report": False, "logging_steps": 8}


@pytest.fixture
def recompiles(caplog):
    """What torch says of them, in a process that has compiled nothing yet and is told nothing of it afterwards."""
    torch._dynamo.reset()
    torch._logging.set_logs(recompiles=True)
    with patch.dict(os.environ):  # transformers and accelerate say there what to compile
        yield caplog
    torch._logging.set_logs()
    torch._dynamo.reset()


def test_batches_of_other_lengths_are_not_compiled_anew(compiled_config, recompiles, tmp_path):
    train_here({**compiled_config, "output_dir": str(tmp_path / "plain")}, tmp_path / "scratch")
    assert "Recompiling" not in recompiles.text
    asked = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    train_here({**compiled_config, **asked}, tmp_path / "scratch")
    told = [line for line in recompiles.text.splitlines() if "Recompiling function" in line]
    assert "recompile_limit" not in recompiles.text
    assert "size mismatch" not in recompiles.text
    assert len(told) < 12, told
    plain, compiled = (
        load_file(path / "adapter_model.safetensors") for path in (tmp_path / "plain", tmp_path / "out")
    )
    for name, weight in plain.items():
        torch.testing.assert_close(compiled[name], weight, atol=1e-4, rtol=1e-3)
