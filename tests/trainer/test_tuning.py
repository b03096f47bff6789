"""Which adapter and which quantised base a config means."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from airflow_provider_sft.contract.errors import ConfigError
from airflow_provider_sft.contract.settings import resolve_config
from trainer.model_files import check_model
from trainer.tuning import apply_peft, build_quantization

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


@pytest.mark.parametrize(("stored", "fits"), [({"quant_method": "gptq"}, True), (None, False)])
def test_auto_gptq_needs_a_base_that_is_quantised_with_it(tiny_model_dir, tmp_path, stored, fits):
    shutil.copytree(tiny_model_dir, tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "quantization_config": stored}))
    values = {"model_name_or_path": str(tmp_path / "base"), "auto_gptq": ["triton_v2"]}
    if fits:
        check_model(values, {})
        return
    with pytest.raises(
        ConfigError, match="'auto_gptq' is .* but the model in .* is not quantised with GPTQ. Name one"
    ):
        check_model(values, {})


# Their routers are linear layers that give scores and choices.
ROUTED = {
    "llama4_text": {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 32},
    "phimoe": {"num_local_experts": 2, "num_experts_per_tok": 2},
}


@pytest.fixture(params=sorted(ROUTED))
def routed(request):
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    sizes |= {"vocab_size": 400, "num_key_value_heads": 2, **ROUTED[request.param]}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(request.param, **sizes))


def adapt(model, tokenizer_dir, told, **keys):
    settings = resolve_config({**BASE, "peft_method": "lora", "lora_dropout": 0.0, **keys})
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    return apply_peft(model, settings, tokenizer, new_rows=0, say=told.append)


def test_all_linear_leaves_routers_of_experts_alone(routed, tiny_model_dir):
    told = []
    tuned = adapt(routed, tiny_model_dir, told, target_modules=["all-linear"])
    adapted = {name.rpartition(".")[2] for name in tuned.targeted_module_names}
    assert {"q_proj", "o_proj"} <= adapted
    assert "router" not in adapted
    assert any("leaves out ['router']" in sentence for sentence in told)
    assert torch.isfinite(tuned(input_ids=torch.arange(8)[None]).logits).all()


def test_router_that_target_modules_names_is_refused(routed, tiny_model_dir):
    with pytest.raises(ConfigError, match="'target_modules' names 'router', which chooses the experts of a"):
        adapt(routed, tiny_model_dir, [], target_modules=["q_proj", "router"])
