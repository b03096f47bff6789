"""Tied, untied, lm_head alone, wte, padded vocabularies, mixtures of experts, 16 bits."""

from __future__ import annotations

import json

import pytest

from airflow_provider_sft.contract.errors import ExportError
from airflow_provider_sft.contract.vllm import judge_adapter
from tests.trainer.export.adapters import (
    VOCABULARY,
    assert_same_weights,
    load_weights,
    outcomes,
    save_adapter,
    save_base,
    served_weights,
    tensor_header,
    write_record,
)
from trainer.export import export_for_vllm

EVERYWHERE = {"0.8.5-0.33": "loads_right"}
EMBED = "base_model.model.model.embed_tokens"
HEAD = "base_model.model.lm_head"


def new_rows(directory):
    from safetensors.torch import load_file

    return load_file(directory / "new_embeddings.safetensors")


@pytest.mark.parametrize("kind", ["llama", "tied"])
def test_added_tokens_of_tied_and_untied_models_give_both_files_rows(save, kind):
    saved = save(kind, grow=2)
    whole = load_weights(saved.directory)
    export_for_vllm(saved.directory)
    rows = new_rows(saved.directory)
    assert rows["input_embeddings"].equal(whole[f"{EMBED}.weight"][-2:])
    assert rows["output_embeddings"].equal(whole[f"{HEAD}.weight"][-2:])


def test_a_tuned_lm_head_alone_gives_its_own_new_rows(save):
    saved = save(grow=2, modules_to_save=["lm_head"])
    trained = load_weights(saved.directory)[f"{HEAD}.weight"]
    export_for_vllm(saved.directory)
    assert new_rows(saved.directory)["output_embeddings"].equal(trained[-2:])


def test_an_lm_head_without_its_input_rows_gives_the_rows_there_are_and_says_so(save):
    from safetensors.torch import save_file

    saved = save(grow=2, modules_to_save=["lm_head"])
    tensors = load_weights(saved.directory)
    del tensors[f"{EMBED}.weight"]
    save_file(tensors, saved.directory / "adapter_model.safetensors", metadata={"format": "pt"})
    outcome = export_for_vllm(saved.directory)
    assert list(new_rows(saved.directory)) == ["output_embeddings"]
    assert any("no input rows" in notice for notice in outcome.notices)


def test_six_vocabulary_matrices_of_modules_to_save_become_two_blocks_of_rows(save):
    saved = save(grow=1, modules_to_save=["embed_tokens", "lm_head"])
    before = load_weights(saved.directory)
    assert sum(tensor.shape[0] == VOCABULARY + 1 for tensor in before.values()) == 6
    export_for_vllm(saved.directory)
    assert new_rows(saved.directory)["input_embeddings"].equal(before[f"{EMBED}.weight"][-1:])
    assert not any("modules_to_save" in name for name in load_weights(saved.directory))


@pytest.mark.parametrize("kind", ["llama", "tied"])
def test_trained_rows_of_added_tokens_move_out_and_old_ones_become_lora(save, kind):
    saved = save(kind, grow=3, trainable_token_indices=[96, 97, 98, 4])
    outcome = export_for_vllm(saved.directory, mode="both")
    assert outcomes(outcome.vllm_verdict) == EVERYWHERE
    assert new_rows(saved.directory)["input_embeddings"].equal(saved.merged["model.embed_tokens.weight"][-3:])
    assert_same_weights(served_weights(saved.directory, saved.directory / "base"), saved.merged)
    assert_same_weights(load_weights(saved.directory / "merged"), saved.merged)


def test_config_no_longer_claims_what_moved_out(save):
    saved = save(grow=2, modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    export_for_vllm(saved.directory)
    config = json.loads((saved.directory / "adapter_config.json").read_text())
    assert (config["modules_to_save"], config["trainable_token_indices"]) == (None, None)
    assert config["ensure_weight_tying"] is False


def test_padding_counts_as_growth(tmp_path, base_of):
    saved = save_adapter(base_of("llama"), tmp_path / "adapter", grow=32)
    whole = load_weights(saved.directory)[f"{EMBED}.weight"]
    assert whole.shape[0] % 64 == 0
    export_for_vllm(saved.directory, num_new_tokens=32)
    assert new_rows(saved.directory)["input_embeddings"].equal(whole[VOCABULARY:])


def test_a_token_in_a_padded_vocabulary_is_no_new_row(save):
    saved = save(trainable_token_indices=[95])
    write_record(saved.directory, 1, VOCABULARY)
    with pytest.raises(ExportError, match="holds no rows for the 1 added tokens"):
        export_for_vllm(saved.directory)
    (saved.directory / "added_tokens_info.json").unlink()
    export_for_vllm(saved.directory, num_new_tokens=0)
    assert_same_weights(served_weights(saved.directory, saved.base), saved.merged)


def test_a_row_of_an_existing_token_is_never_taken_for_a_new_one(save):
    saved = save(modules_to_save=["embed_tokens", "lm_head"])
    write_record(saved.directory, 1, VOCABULARY)
    with pytest.raises(ExportError, match="already has 96 rows. Give 0"):
        export_for_vllm(saved.directory)


def test_gpt2_of_which_no_release_takes_lora_is_refused_untouched_and_merges(save):
    saved = save("gpt2", grow=2, target_modules=["c_attn", "c_proj", "wte"])
    with pytest.raises(ExportError, match="takes no LoRA for GPT2LMHeadModel"):
        export_for_vllm(saved.directory, mode="both")
    assert not (saved.directory / "new_embeddings.safetensors").exists()
    merged = load_weights(export_for_vllm(saved.directory, mode="merged").model_path)
    assert_same_weights(
        {"wte": merged["transformer.wte.weight"]}, {"wte": saved.merged["transformer.wte.weight"]}
    )


def test_gpt2s_conv1d_weights_merge_the_other_way_round(save):
    saved = save("gpt2", target_modules=["c_attn", "c_proj", "c_fc"], use_dora=True)
    outcome = export_for_vllm(saved.directory, mode="merged")
    assert_same_weights(load_weights(outcome.model_path), saved.merged)


def test_fused_experts_load_wrong_and_become_a_lora_for_each_expert(save):
    saved = save("mixtral", target_modules="all-linear", use_rslora=True)
    assert "loads_right" not in outcomes(judge_adapter(saved.directory)).values()
    outcome = export_for_vllm(saved.directory)
    assert outcomes(outcome.vllm_verdict) == {"0.8.5-0.11.0": "rejected", "0.11.1-0.33": "loads_right"}
    names = tensor_header(saved.directory / "adapter_model.safetensors")
    assert "base_model.model.model.layers.0.block_sparse_moe.experts.3.w2.lora_B.weight" in names
    assert_same_weights(served_weights(saved.directory, saved.base), saved.merged)


def test_exported_experts_still_load_in_peft(save):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    saved = save("mixtral", target_modules="all-linear")
    export_for_vllm(saved.directory)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(saved.base), saved.directory)
    model.merge_and_unload().save_pretrained(saved.directory / "again")
    assert_same_weights(load_weights(saved.directory / "again"), saved.merged)


@pytest.mark.parametrize("parameters", [["experts.down_proj"], ["experts.gate_up_proj"]], ids=str)
def test_experts_with_one_of_two_matrices_tuned_merge_right(save, parameters):
    saved = save("mixtral", target_parameters=parameters)
    outcome = export_for_vllm(saved.directory, mode="merged")
    assert_same_weights(load_weights(outcome.model_path), saved.merged)


def test_all_of_a_mixture_merges_right(save):
    saved = save("mixtral", target_modules="all-linear", lora_alpha=3)
    outcome = export_for_vllm(saved.directory, mode="merged")
    assert_same_weights(load_weights(outcome.model_path), saved.merged)


def test_a_patterned_16_bit_adapter_keeps_the_exact_product(save):
    saved = save(dtype="bfloat16", rank_pattern={"q_proj": 6}, alpha_pattern={"v_proj": 3})
    export_for_vllm(saved.directory)
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    # PEFT merges in the base's type: in float32, nothing is lost on the way.
    tuned = save_adapter_again_in_float32(saved)
    assert_same_weights(served_weights(saved.directory, saved.base), tuned)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(saved.base), saved.directory)
    model.merge_and_unload().save_pretrained(saved.directory / "again")
    assert_same_weights(load_weights(saved.directory / "again"), tuned)


def save_adapter_again_in_float32(saved):
    """The original adapter's merged weights, from the patterns themselves."""
    import torch

    weights = {name: tensor.float() for name, tensor in load_weights(saved.base).items()}
    torch.manual_seed(1)
    fresh = save_adapter(
        saved.base,
        saved.directory.with_name("fresh"),
        dtype="bfloat16",
        rank_pattern={"q_proj": 6},
        alpha_pattern={"v_proj": 3},
    )
    tensors = {
        name.removeprefix("base_model.model."): t.float() for name, t in load_weights(fresh.directory).items()
    }
    for name, a in tensors.items():
        if name.endswith("lora_A.weight"):
            scaling = 3 / 4 if "v_proj" in name else 8 / 6
            weights[name.replace("lora_A.", "")] += scaling * tensors[name.replace("lora_A", "lora_B")] @ a
    return weights


def test_trained_rows_in_16_bits_are_computed_in_float32(save):
    saved = save(dtype="bfloat16", trainable_token_indices=[9, 5])
    export_for_vllm(saved.directory)
    header = tensor_header(saved.directory / "adapter_model.safetensors")
    assert header[f"{EMBED}.lora_embedding_A"] == ("BF16", (4, VOCABULARY))
    assert header[f"{EMBED}.lora_embedding_B"][0] == "F32"
    served = served_weights(saved.directory, saved.base)
    rows = [9, 5]
    difference = (
        served["model.embed_tokens.weight"][rows] - saved.merged["model.embed_tokens.weight"][rows].float()
    )
    assert difference.abs().max() < 1e-6


def test_more_trained_rows_than_the_largest_rank_are_refused(tmp_path):
    base = save_base(tmp_path / "base", "llama", vocab_size=600)
    saved = save_adapter(base, tmp_path / "adapter", modules_to_save=["embed_tokens"])
    with pytest.raises(ExportError, match="600 rows of existing tokens .* rank 512 at most"):
        export_for_vllm(saved.directory)
    assert_same_weights(
        load_weights(export_for_vllm(saved.directory, mode="merged").model_path), saved.merged
    )


def test_exported_rows_load_in_peft_as_in_vllm(save):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    saved = save(trainable_token_indices=[9, 5, 70, 71, 72], target_modules="all-linear")
    export_for_vllm(saved.directory)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(saved.base), saved.directory)
    model.merge_and_unload().save_pretrained(saved.directory / "again")
    assert_same_weights(load_weights(saved.directory / "again"), saved.merged)
