"""Every row of the table in docs/vllm.md: what PEFT saves today, how it is judged, and what its export gives."""

from __future__ import annotations

import json

import pytest

from airflow_provider_sft.contract.errors import ExportError
from airflow_provider_sft.contract.vllm import judge_adapter
from tests.trainer.export.adapters import (
    HIDDEN,
    VOCABULARY,
    assert_same_weights,
    file_bytes,
    load_weights,
    outcomes,
    served_weights,
    tensor_header,
)
from trainer.export import export_for_vllm

EVERYWHERE = {"0.8.5-0.33": "loads_right"}


@pytest.mark.parametrize("lora", [{}, {"target_modules": "all-linear"}, {"use_rslora": True}], ids=str)
def test_plain_lora_is_right_everywhere_and_left_as_it_is(save, lora):
    saved = save(**lora)
    before = file_bytes(saved.directory)
    outcome = export_for_vllm(saved.directory)
    assert outcomes(outcome.vllm_verdict) == EVERYWHERE
    assert file_bytes(saved.directory) == before
    assert_same_weights(served_weights(saved.directory, saved.base), saved.merged)


def test_lora_on_embeddings_is_judged_by_its_frozen_copies(save):
    saved = save(target_modules=["q_proj", "embed_tokens", "lm_head"])
    assert outcomes(judge_adapter(saved.directory)) == {
        "0.8.5-0.11.2": "rejected",
        "0.12-0.33": "loads_right",
    }


def test_lora_on_embeddings_is_right_everywhere_once_stripped(save):
    saved = save(target_modules=["q_proj", "embed_tokens", "lm_head"])
    outcome = export_for_vllm(saved.directory)
    assert outcomes(outcome.vllm_verdict) == EVERYWHERE
    names = tensor_header(saved.directory / "adapter_model.safetensors")
    assert [name for name in names if "base_layer" in name] == []
    assert names["base_model.model.lm_head.lora_B.weight"] == ("F32", (VOCABULARY, 4))
    assert_same_weights(served_weights(saved.directory, saved.base), saved.merged)


WHOLE = {
    "modules_to_save": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "norm": {"modules_to_save": ["norm"]},
    "dora": {"use_dora": True},
    "bias": {"bias": "all"},
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_no_plain_lora_is_rejected_everywhere(save, name):
    assert set(outcomes(judge_adapter(save(**WHOLE[name]).directory)).values()) == {"rejected"}


@pytest.mark.parametrize("name", ["norm", "dora", "bias"])
def test_what_no_adapter_can_say_is_refused_with_the_way_out(save, name):
    saved = (
        save("gpt2", target_modules=["c_attn"], bias="lora_only") if name == "bias" else save(**WHOLE[name])
    )
    before = file_bytes(saved.directory)
    with pytest.raises(ExportError, match="Set vllm_export to 'merged'") as caught:
        export_for_vllm(saved.directory)
    assert caught.value.exit_code == 69
    assert file_bytes(saved.directory) == before


@pytest.mark.parametrize("name", WHOLE)
def test_merging_is_right_where_no_adapter_is(save, name):
    saved = (
        save("gpt2", target_modules=["c_attn"], bias="lora_only") if name == "bias" else save(**WHOLE[name])
    )
    outcome = export_for_vllm(saved.directory, mode="merged")
    assert outcome.model_kind == "merged"
    assert_same_weights(load_weights(outcome.model_path), saved.merged)


def test_whole_embeddings_with_few_trained_rows_become_lora(save):
    kept = [token for token in range(VOCABULARY) if token not in (5, 70)]
    saved = save(modules_to_save=["embed_tokens", "lm_head"], keep_rows=kept)
    outcome = export_for_vllm(saved.directory)
    assert outcomes(outcome.vllm_verdict) == EVERYWHERE
    assert_same_weights(served_weights(saved.directory, saved.base), saved.merged)


def test_resized_embeddings_are_rejected_and_their_new_rows_move_out(save):
    saved = save(grow=3)
    assert set(outcomes(judge_adapter(saved.directory)).values()) == {"rejected"}
    whole = load_weights(saved.directory)
    outcome = export_for_vllm(saved.directory)
    assert set(outcomes(outcome.vllm_verdict).values()) == {"loads_wrong"}
    rows = load_new_embeddings(saved.directory)
    assert rows["input_embeddings"].equal(whole["base_model.model.model.embed_tokens.weight"][-3:])
    assert rows["output_embeddings"].equal(whole["base_model.model.lm_head.weight"][-3:])
    assert no_vocabulary_in(saved.directory)


def test_resized_embeddings_are_right_everywhere_on_the_resized_base(save):
    saved = save(grow=3)
    outcome = export_for_vllm(saved.directory, mode="both")
    assert outcomes(outcome.vllm_verdict) == EVERYWHERE
    assert_same_weights(served_weights(saved.directory, saved.directory / "base"), saved.merged)
    assert_same_weights(load_weights(saved.directory / "merged"), saved.merged)


def test_resized_lora_on_embeddings_is_right_up_to_0_11_and_rejected_since(save):
    saved = save(grow=3, target_modules=["q_proj", "embed_tokens", "lm_head"])
    outcome = export_for_vllm(saved.directory)
    assert outcomes(outcome.vllm_verdict) == {"0.8.5-0.11.2": "loads_right", "0.12-0.33": "rejected"}
    assert_same_weights(served_weights(saved.directory, saved.base, release=0.11), saved.merged)


def test_resized_lora_on_embeddings_is_right_everywhere_on_the_resized_base(save):
    saved = save(grow=3, target_modules=["q_proj", "embed_tokens", "lm_head"])
    outcome = export_for_vllm(saved.directory, mode="both")
    assert outcomes(outcome.vllm_verdict) == EVERYWHERE
    assert_same_weights(served_weights(saved.directory, saved.directory / "base"), saved.merged)


@pytest.mark.parametrize("kind", ["llama", "tied"])
def test_trained_rows_are_rejected_and_become_lora_that_is_right(save, kind):
    saved = save(kind, trainable_token_indices=[9, 5, 70])
    assert set(outcomes(judge_adapter(saved.directory)).values()) == {"rejected"}
    outcome = export_for_vllm(saved.directory)
    assert outcomes(outcome.vllm_verdict) == EVERYWHERE
    assert_same_weights(served_weights(saved.directory, saved.base), saved.merged)


def test_trained_rows_of_each_embedding_keep_their_own_tokens(save):
    saved = save(trainable_token_indices={"embed_tokens": [9, 5], "lm_head": [3]})
    export_for_vllm(saved.directory)
    assert_same_weights(served_weights(saved.directory, saved.base), saved.merged)


def test_patterns_load_wrong_before_0_32_and_right_once_baked(save):
    saved = save(rank_pattern={"q_proj": 6}, alpha_pattern={"v_proj": 3}, use_rslora=True)
    assert outcomes(judge_adapter(saved.directory)) == {
        "0.8.5-0.31": "loads_wrong",
        "0.32-0.33": "loads_right",
    }
    outcome = export_for_vllm(saved.directory)
    assert outcomes(outcome.vllm_verdict) == EVERYWHERE
    config = json.loads((saved.directory / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"], config["alpha_pattern"]) == (6, {}, {})
    assert_same_weights(served_weights(saved.directory, saved.base), saved.merged)


@pytest.mark.parametrize(
    "lora", [{"alora_invocation_tokens": [1, 2]}, {"init_lora_weights": "pissa"}], ids=str
)
def test_alora_and_pissa_load_wrong_then_rejected_and_are_refused(save, lora):
    saved = save(**lora)
    assert outcomes(judge_adapter(saved.directory)) == {"0.8.5-0.31": "loads_wrong", "0.32-0.33": "rejected"}
    for mode in ("adapter", "merged", "both"):
        with pytest.raises(ExportError):
            export_for_vllm(saved.directory, mode=mode)


def test_rank_flag_is_the_least_that_vllm_takes(save):
    outcome = export_for_vllm(save(r=33).directory)
    assert outcome.vllm_verdict[0]["flags"] == ["--enable-lora", "--max-lora-rank=64"]


def load_new_embeddings(directory):
    from safetensors.torch import load_file

    return load_file(directory / "new_embeddings.safetensors")


def no_vocabulary_in(directory) -> bool:
    shapes = [shape for _, shape in tensor_header(directory / "adapter_model.safetensors").values()]
    return not any(max(shape) >= VOCABULARY and min(shape) >= HIDDEN for shape in shapes)
