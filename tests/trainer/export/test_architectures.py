"""Every architecture family whose merge differs: merged as PEFT merges, exported as vLLM wants it."""

from __future__ import annotations

import json
import re

import pytest

from airflow_provider_sft.contract.vllm import judge_adapter
from tests.trainer.export.adapters import VOCABULARY, Saved, assert_same_weights, load_weights, outcomes
from trainer.export import export_for_vllm
from trainer.pretrained import load_whole_model

_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
MODELS = {
    "gpt_oss": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "llama4_text": (
        "Llama4Text",
        {"num_local_experts": 4, "intermediate_size_mlp": 24, "interleave_moe_layer_step": 1},
    ),
    "qwen3_moe": ("Qwen3Moe", {"num_experts": 4, **_EXPERTS}),
    "granitemoe": ("GraniteMoe", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}
PARAMETERS = ["experts.down_proj", "experts.gate_up_proj"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """`tuned(kind, **lora)`: a LoRA on a tiny model of the kind, as PEFT saves it and merges it."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    def make(kind, **lora) -> Saved:
        root = tmp_path_factory.mktemp(kind)
        name, settings = MODELS[kind]
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**_SHAPE | settings)
        model_class = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")
        model_class(config).save_pretrained(root / "base")
        model = model_class.from_pretrained(root / "base", dtype=torch.float32)
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **lora))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn_like(parameter) * 0.2
        model.save_pretrained(root / "adapter")
        (root / "adapter" / "added_tokens_info.json").write_text('{"num_new_tokens": 0}')
        model.merge_and_unload().save_pretrained(root / "merged")
        return Saved(root / "adapter", root / "base", load_weights(root / "merged"))

    return make


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("parameters", [PARAMETERS[:1], PARAMETERS[1:], PARAMETERS], ids=str)
def test_experts_of_every_layout_merge_as_peft_merges_them(tuned, kind, parameters):
    saved = tuned(kind, target_modules=["v_proj"], target_parameters=parameters)
    merged = export_for_vllm(saved.directory, mode="merged").model_path
    assert_same_weights(load_weights(merged), saved.merged)


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("parameter", PARAMETERS)
def test_experts_with_lora_on_one_matrix_get_zeros_for_the_other(tuned, kind, parameter):
    saved = tuned(kind, target_modules=["v_proj"], target_parameters=[parameter])
    assert "loads_right" not in outcomes(judge_adapter(saved.directory)).values()
    export_for_vllm(saved.directory)
    tensors = load_weights(saved.directory)
    zeros = {name for name, tensor in tensors.items() if "experts" in name and not tensor.any()}
    others = {name for name in tensors if "experts" in name} - zeros
    assert zeros
    assert others
    assert judge_adapter(saved.directory)[-1]["verdict"] == "loads_right"
    merged = export_for_vllm(saved.directory, mode="merged").model_path
    assert_same_weights(load_weights(merged), saved.merged)


def test_a_rank_pattern_on_a_parameter_scales_as_in_peft(tuned):
    saved = tuned(
        "qwen3_moe",
        target_modules=[],
        target_parameters=["q_proj.weight", "v_proj.weight"],
        rank_pattern={"q_proj.weight": 2},
    )
    assert "loads_right" not in outcomes(judge_adapter(saved.directory)).values()
    merged = export_for_vllm(saved.directory, mode="merged").model_path
    assert_same_weights(load_weights(merged), saved.merged)
    export_for_vllm(saved.directory)
    assert json.loads((saved.directory / "adapter_config.json").read_text())["rank_pattern"] == {}
    merged = export_for_vllm(saved.directory, mode="merged").model_path
    assert_same_weights(load_weights(merged), saved.merged)


def test_lora_on_query_rows_of_llama4_is_called_wrong(tuned):
    saved = tuned("llama4_text", target_modules=["q_proj", "v_proj"])
    (verdict,) = (v for v in judge_adapter(saved.directory) if v["releases"].endswith("0.33"))
    assert verdict["verdict"] == "loads_wrong"
    assert "Llama 4's q_proj" in verdict["reason"]


_VISION = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
           "image_size": 16, "patch_size": 4, "vision_output_dim": 16, "projector_input_dim": 16,
           "projector_output_dim": 16}  # fmt: skip
_TEXT_ROOT = re.compile(r"^(?=model\.|lm_head)")
_QUERY = "language_model.model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize("kind", ["gemma3", "llama4"])
def test_a_multimodal_base_with_the_hubs_names_merges_as_peft_merges_it(kind, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(0)
    text = _SHAPE | {"num_local_experts": 4, "intermediate_size_mlp": 24, "num_hidden_layers": 2}
    config = AutoConfig.for_model(kind, text_config=text, vision_config=_VISION, mm_tokens_per_image=4)
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path / "base")
    on_disk = load_weights(tmp_path / "base")
    assert "language_model.model.layers.1.self_attn.q_proj.weight" in on_disk
    model = get_peft_model(
        load_whole_model(str(tmp_path / "base")).float(), LoraConfig(target_modules=r".*layers.*[qv]_proj")
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) * 0.2
    model.save_pretrained(tmp_path / "adapter")
    merged = export_for_vllm(tmp_path / "adapter", num_new_tokens=0, mode="merged").model_path
    model.merge_and_unload().save_pretrained(tmp_path / "peft")
    # PEFT's merge is of the class that was trained, the text-only one of Llama 4: the other tensors are the base's.
    tuned = {
        _TEXT_ROOT.sub("language_model.", name): tensor
        for name, tensor in load_weights(tmp_path / "peft").items()
    }
    assert_same_weights(load_weights(merged), on_disk | tuned)
    assert not torch.equal(on_disk[_QUERY], tuned[_QUERY])
