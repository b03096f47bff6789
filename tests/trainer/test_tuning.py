"""Which adapter and which quantised base a config means."""

from __future__ import annotations

import pytest
import torch

from airflow_provider_sft.contract.errors import ConfigError
from airflow_provider_sft.contract.settings import resolve_config
from trainer.tuning import build_quantization

BASE = {"model_name_or_path": "org/model", "training_data_path": "/d.jsonl", "output_dir": "/o"}


@pytest.mark.parametrize("dequantize", [True, False])
def test_mxfp4_base_is_loaded_as_asked(dequantize):
    settings = resolve_config({**BASE, "quantization_method": "mxfp4", "dequantize": dequantize})
    assert build_quantization(settings).dequantize is dequantize


def test_plain_base_is_not_quantised():
    assert build_quantization(resolve_config(BASE)) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_qlora_without_a_gpu_is_refused():
    settings = resolve_config({**BASE, "peft_method": "lora", "bnb_qlora": ["nf4", True]})
    with pytest.raises(ConfigError, match="Config key 'bnb_qlora' is .*, which needs a GPU. Request one"):
        build_quantization(settings)
