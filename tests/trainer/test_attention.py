"""Document attention: the numbers of padded batches, for every kind of model that goes without padding."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from airflow_provider_sft.contract.settings import resolve_config
from trainer.attention import (
    DOCUMENT_CAUSAL,
    PADDING_FREE_MODEL_TYPES,
    choose_attention,
    document_mask,
    explain_padding,
    register_document_attention,
    supports_padding_free,
)
from trainer.data.batching import PaddedCollator, PaddingFreeCollator

register_document_attention()
LENGTHS = (5, 3, 8, 1, 9)
# Sizes under every name that configs have for them.
TINY = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "num_local_experts": 4,
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_routed_experts": 4, "n_group": 1,
    "topk_group": 1, "n_shared_experts": 1, "initializer_range": 0.3, "kv_lora_rank": 8, "q_lora_rank": 8,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 1,
    "sliding_window_pattern": 2, "sliding_window": 64,
}  # fmt: skip


def tiny_config(model_type: str, **changes):
    kind = type(AutoConfig.for_model(model_type))
    known = {*AutoConfig.for_model(model_type).to_dict(), *kind.attribute_map}
    sizes = TINY | (
        {"num_key_value_heads": 4} if model_type in ("deepseek_v2", "deepseek_v3", "dots1") else {}
    )
    return AutoConfig.for_model(
        model_type, **{key: value for key, value in sizes.items() if key in known} | changes
    )


def tiny_model(model_type: str, attention: str = DOCUMENT_CAUSAL, **changes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        tiny_config(model_type, **changes), attn_implementation=attention, dtype=torch.float32
    )


def rows():
    generator = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, 97, (length,), generator=generator).tolist() for length in LENGTHS]
    return [{"input_ids": row, "labels": [-100] * (len(row) // 3) + row[len(row) // 3 :]} for row in ids]


def loss_and_gradients(model, batch):
    model.zero_grad()
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits = model(**inputs, use_cache=False).logits[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:].flatten(), ignore_index=-100)
    loss.backward()
    named = model.named_parameters()
    return loss.item(), {name: weight.grad.clone() for name, weight in named if weight.grad is not None}


def assert_equal_training(model, reference=None):
    loss, gradients = loss_and_gradients(model, PaddingFreeCollator()(rows()))
    other_loss, other_gradients = loss_and_gradients(reference or model, PaddedCollator()(rows()))
    assert loss == pytest.approx(other_loss, abs=1e-5)
    assert gradients.keys() == other_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, other_gradients[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model_type", sorted(PADDING_FREE_MODEL_TYPES))
def test_batch_without_padding_has_the_loss_and_gradients_of_a_padded_one(model_type):
    assert_equal_training(tiny_model(model_type).eval())


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma", "mistral"])
@pytest.mark.parametrize("reference", ["eager", "sdpa"])
def test_numbers_equal_transformers_own_attention_on_padded_rows(model_type, reference):
    assert_equal_training(tiny_model(model_type).eval(), tiny_model(model_type, reference).eval())


@pytest.mark.parametrize("model_type", ["mistral", "qwen2", "gemma3_text", "olmo3"])
def test_window_shorter_than_a_document_is_kept(model_type):
    changes = {"use_sliding_window": True, "max_window_layers": 0} if model_type == "qwen2" else {}
    assert_equal_training(tiny_model(model_type, sliding_window=3, **changes).eval())


def test_gradient_checkpointing_changes_no_number():
    model = tiny_model("llama").train()
    plain = loss_and_gradients(model, PaddingFreeCollator()(rows()))
    model.gradient_checkpointing_enable()
    loss, gradients = loss_and_gradients(model, PaddingFreeCollator()(rows()))
    assert loss == pytest.approx(plain[0], abs=1e-6)
    assert all(torch.allclose(gradients[name], plain[1][name], atol=1e-6) for name in gradients)


def test_mask_of_documents_is_their_boundaries_and_not_a_square():
    batch = PaddingFreeCollator()(rows())
    model, seen = tiny_model("llama"), []
    handle = model.model.layers[0].self_attn.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
    )
    model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
    handle.remove()
    assert seen[0].tolist() == [0, 5, 8, 16, 17, 26]


def test_one_document_alone_needs_no_mask():
    assert document_mask(1, 8, 8, allow_is_causal_skip=True) is None


def test_mask_that_is_more_than_causal_is_left_to_sdpa():
    def bidirectional(_batch, _head, query, _key):
        return query >= 0

    mask = document_mask(1, 4, 4, mask_function=bidirectional, allow_is_causal_skip=False)
    assert mask.shape == (1, 1, 4, 4)
    assert mask.all()


def test_padded_rows_and_generation_work_as_with_sdpa():
    ours, sdpa = tiny_model("llama").eval(), tiny_model("llama", "sdpa").eval()
    batch = PaddedCollator()(rows())
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    torch.testing.assert_close(ours(**inputs).logits, sdpa(**inputs).logits)
    prompt = batch["input_ids"][4:5, :6]
    told = [model.generate(prompt, max_new_tokens=5, do_sample=False).tolist() for model in (ours, sdpa)]
    assert told[0] == told[1]


@pytest.mark.parametrize("model_type", ["bloom", "mamba", "falcon", "gpt_oss", "gemma2", "opt", "qwen3_next"])
def test_model_that_would_mix_documents_is_not_supported(model_type):
    assert not supports_padding_free(AutoConfig.for_model(model_type))


def test_hybrid_layers_and_code_of_the_models_own_are_not_supported():
    assert supports_padding_free(tiny_config("llama"))
    assert not supports_padding_free(tiny_config("llama", layer_types=["full_attention", "linear_attention"]))
    assert not supports_padding_free(tiny_config("llama", auto_map={"AutoModelForCausalLM": "own.Model"}))


@pytest.fixture
def settings_for(tmp_path):
    def make(model_type="llama", **config):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        return resolve_config(
            {
                "model_name_or_path": str(tmp_path),
                "training_data_path": "x.jsonl",
                "output_dir": str(tmp_path / "out"),
                "torch_dtype": "float32",
                **config,
            }
        )

    return make


@pytest.mark.parametrize(
    ("config", "attention"),
    [
        ({}, DOCUMENT_CAUSAL),
        ({"use_flash_attn": False}, DOCUMENT_CAUSAL),
        ({"attn_implementation": "eager"}, "eager"),
        ({"padding_free": False}, None),
        ({"padding_free": False, "use_flash_attn": False}, None),
        ({"model_type": "bloom"}, None),
        ({"model_type": "gpt_oss"}, None),
    ],
)
def test_attention_is_the_fastest_that_is_exact(settings_for, config, attention):
    assert choose_attention(settings_for(**config)) == attention


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"padding_free": False}, "padding_free is off"),
        ({"peft_method": "pt"}, "virtual tokens"),
        ({"attn_implementation": "eager"}, "every pair of tokens"),
        ({"model_type": "bloom"}, "a bloom model is not known to keep the documents of one row apart"),
        ({}, None),
    ],
)
def test_why_batches_are_padded_is_said(settings_for, config, reason):
    found = explain_padding(settings_for(**config))
    assert found is None if reason is None else reason in found
