"""torch.compile where every batch has another length: compiled once or twice, not once a length."""

import re

import pytest
import torch
from safetensors.torch import load_file


@pytest.fixture
def compiled_config(lora_config):
    return {**lora_config, "save_strategy": "no", "report": False, "logging_steps": 8}


def test_batches_of_other_lengths_are_not_compiled_anew(compiled_config, run_trainer, tmp_path):
    run_trainer({**compiled_config, "output_dir": str(tmp_path / "plain")})
    run = run_trainer(
        {**compiled_config, "torch_compile": True, "torch_compile_backend": "aot_eager"},
        TORCH_LOGS="recompiles",
    )
    told = re.findall(r"Recompiling function .*", run.stderr)
    assert "recompile_limit" not in run.stderr
    assert "size mismatch" not in run.stderr
    assert len(told) < 12, told
    plain, compiled = (
        load_file(path / "adapter_model.safetensors") for path in (tmp_path / "plain", tmp_path / "out")
    )
    for name, weight in plain.items():
        torch.testing.assert_close(compiled[name], weight, atol=1e-4, rtol=1e-3)
