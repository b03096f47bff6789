"""Whole models: shards, ties, types, and what cannot be merged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from airflow_provider_sft.contract.errors import ExportError
from tests.trainer.export.adapters import (
    assert_same_weights,
    file_bytes,
    load_weights,
    save_adapter,
    save_base,
    tensor_header,
)
from trainer.export import export_for_vllm


def logits_of(model):
    import torch

    with torch.no_grad():
        return model.eval()(torch.arange(40).reshape(2, 20)).logits


def load_model(directory):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory)


def test_merging_keeps_the_bases_shards_and_index(save):
    saved = save()
    merged = export_for_vllm(saved.directory, mode="merged").model_path
    shards = sorted(path.name for path in saved.base.glob("*.safetensors"))
    assert len(shards) > 2
    assert sorted(path.name for path in merged.glob("*.safetensors")) == shards
    index = json.loads((merged / "model.safetensors.index.json").read_text())
    assert index == json.loads((saved.base / "model.safetensors.index.json").read_text()) | index
    for path in merged.glob("*.safetensors"):
        assert tensor_header(path) == tensor_header(saved.base / path.name)


def test_a_merged_model_answers_as_the_tuned_one(save):
    from peft import PeftModel

    saved = save(grow=2, target_modules="all-linear")
    merged = export_for_vllm(saved.directory, mode="merged").model_path
    base = load_model(saved.base)
    base.resize_token_embeddings(98, mean_resizing=False)
    tuned = PeftModel.from_pretrained(base, saved.directory)
    assert (logits_of(load_model(merged)) - logits_of(tuned)).abs().max() < 1e-5


def test_lora_on_a_tied_input_embedding_leaves_the_output_as_it_was(save):
    from peft import PeftModel

    saved = save("tied", target_modules=["q_proj", "embed_tokens"])
    tuned = PeftModel.from_pretrained(load_model(saved.base), saved.directory)
    merged = export_for_vllm(saved.directory, mode="merged").model_path
    assert json.loads((merged / "config.json").read_text())["tie_word_embeddings"] is False
    assert (logits_of(load_model(merged)) - logits_of(tuned)).abs().max() < 1e-5


def test_lora_tied_on_both_embeddings_merges_into_both(save):
    from peft import PeftModel

    saved = save("tied", target_modules=["q_proj", "embed_tokens"], ensure_weight_tying=True)
    tuned = PeftModel.from_pretrained(load_model(saved.base), saved.directory)
    merged = export_for_vllm(saved.directory, mode="merged").model_path
    assert (logits_of(load_model(merged)) - logits_of(tuned)).abs().max() < 1e-5


def test_a_tied_model_stays_tied_when_both_ends_got_the_same_rows(save):
    saved = save("tied", grow=2, trainable_token_indices=[96, 97, 4])
    merged = export_for_vllm(saved.directory, mode="merged").model_path
    config = json.loads((merged / "config.json").read_text())
    assert (config["tie_word_embeddings"], config["vocab_size"]) == (True, 98)
    assert "lm_head.weight" not in tensor_header(merged / "model.safetensors")
    assert_same_weights(load_weights(merged), saved.merged)


def test_dora_on_embeddings_merges_right(save):
    saved = save(target_modules=["q_proj", "embed_tokens"], use_dora=True)
    assert_same_weights(
        load_weights(export_for_vllm(saved.directory, mode="merged").model_path), saved.merged
    )


def test_lora_bias_merges_right(tmp_path):
    base = save_base(tmp_path / "base", "llama", attention_bias=True)
    saved = save_adapter(base, tmp_path / "adapter", lora_bias=True)
    assert_same_weights(
        load_weights(export_for_vllm(saved.directory, mode="merged").model_path), saved.merged
    )


def test_16_bit_weights_are_rounded_once(tmp_path):
    base = save_base(tmp_path / "base", "llama", dtype="bfloat16")
    saved = save_adapter(base, tmp_path / "adapter", dtype="bfloat16")
    merged = load_weights(export_for_vllm(saved.directory, mode="merged").model_path)
    name = "model.layers.0.self_attn.q_proj.weight"
    adapter = {key: tensor.float() for key, tensor in load_weights(saved.directory).items()}
    a, b = (adapter[f"base_model.model.{name.replace('weight', f'lora_{x}.weight')}"] for x in "AB")
    expected = (load_weights(base)[name].float() + 2 * (b @ a)).bfloat16()
    assert merged[name].dtype == expected.dtype
    assert (merged[name] != expected).float().mean() < 0.01  # a sum in another order may round the other way


def test_an_exported_adapter_still_merges(save):
    saved = save(grow=2, target_modules=["q_proj", "embed_tokens", "lm_head"])
    export_for_vllm(saved.directory)
    assert_same_weights(
        load_weights(export_for_vllm(saved.directory, mode="merged").model_path), saved.merged
    )


def test_merging_again_gives_the_same_bytes(save):
    saved = save(grow=2)
    first = file_bytes(export_for_vllm(saved.directory, mode="merged").model_path)
    assert file_bytes(export_for_vllm(saved.directory, mode="merged").model_path) == first


def test_merging_brings_the_tuned_tokenizer_and_leaves_the_adapter(save):
    saved = save()
    (saved.directory / "tokenizer.json").write_text("{}")
    before = file_bytes(saved.directory)
    merged = export_for_vllm(saved.directory, mode="merged").model_path
    assert (merged / "tokenizer.json").read_text() == "{}"
    after = file_bytes(saved.directory)
    assert {name: after[name] for name in before} == before


def test_merging_without_the_base_model_is_refused(save):
    saved = save()
    config = json.loads((saved.directory / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/nowhere"
    (saved.directory / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match="'/nowhere'.* was not found.* Give its directory with --base"):
        export_for_vllm(saved.directory, mode="merged")
    outcome = export_for_vllm(saved.directory, mode="merged", base_model_dir=saved.base)
    assert_same_weights(load_weights(outcome.model_path), saved.merged)


def test_merging_into_another_model_is_refused(save, base_of):
    with pytest.raises(ExportError, match=r"has no model.layers.0.self_attn.q_proj.weight"):
        export_for_vllm(save().directory, mode="merged", base_model_dir=base_of("gpt2"))


def test_merging_into_a_quantised_base_is_refused(save, tmp_path):
    saved = save()
    quantised = shutil.copytree(saved.base, tmp_path / "quantised")
    config = json.loads((quantised / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (quantised / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match=r"is quantised \(gptq\)"):
        export_for_vllm(saved.directory, mode="merged", base_model_dir=quantised)


def test_merging_needs_a_block_of_memory_and_not_a_model(tmp_path):
    """A base of 400 MB merges within 150 MB beyond an idle process."""
    shape = {"vocab_size": 1000, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 6}
    base = save_base(tmp_path / "base", "tied", **shape, dtype="bfloat16")
    saved = save_adapter(base, tmp_path / "adapter", dtype="bfloat16")
    code = (
        "import resource, sys; from pathlib import Path; from trainer.export import export_for_vllm; import numpy;"
        "idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "export_for_vllm(Path(sys.argv[1]), mode='merged');"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - idle)"
    )
    grown_kb = int(subprocess.check_output([sys.executable, "-c", code, str(saved.directory)]))
    assert sum(path.stat().st_size for path in base.glob("*.safetensors")) > 350e6
    assert grown_kb < 150_000
