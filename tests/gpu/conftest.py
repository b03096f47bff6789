"""`make gpu-test`: the trainer on this machine's GPU. Without one, these tests skip."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Only who asks with `-m gpu` gets these: elsewhere they would say nothing."""
    if "gpu" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU is visible")


@pytest.fixture(scope="session")
def small_model_dir(shared_dir: Path, gpu: None) -> Path:
    """A Llama of 0.3 B parameters in bfloat16, untrained, with the tiny one's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = shared_dir / "small-llama"
    tokenizer = tiny.train_tokenizer()
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=1024, intermediate_size=4096, num_hidden_layers=12, num_attention_heads=16,
        num_key_value_heads=4, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
