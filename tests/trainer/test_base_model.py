"""A base model is trained only when every weight of it came from a file."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from airflow_provider_sft.contract.errors import AccessDeniedError, ConfigError, NotFoundError, SFTError
from tests.trainer.here import run_here, train_here
from tests.trainer.test_attention import tiny_model
from trainer.evaluate import main as evaluate
from trainer.model_content import list_weight_files
from trainer.model_files import check_model
from trainer.pretrained import load_tokenizer_files, load_whole_model

# Tied and untied, attention and state space, whole experts and experts in parts, window and rotary variants.
KINDS = [
    "apertus",
    "bloom",
    "codegen",
    "cohere",
    "deepseek_v3",
    "dots1",
    "ernie4_5_moe",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm4",
    "gpt2",
    "gpt_bigcode",
    "gpt_neox",
    "gpt_oss",
    "granite",
    "granitemoe",
    "jamba",
    "llama",
    "llama4_text",
    "mamba",
    "mistral",
    "mixtral",
    "mpt",
    "nemotron",
    "olmo2",
    "olmoe",
    "opt",
    "phi",
    "phi3",
    "phimoe",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_5_text",
    "qwen3_moe",
    "qwen3_next",
    "smollm3",
    "stablelm",
    "starcoder2",
]


def rewrite(directory, change):
    """Save the weights as `change` makes them from those that are there."""
    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


@pytest.mark.parametrize("kind", KINDS)
def test_base_model_of_any_kind_loads_whole_and_not_when_a_weight_or_all_names_are_wrong(kind, tmp_path):
    tiny_model(kind, "eager").save_pretrained(tmp_path)
    load_whole_model(str(tmp_path))
    whole = load_file(tmp_path / "model.safetensors")
    lost = sorted(whole)[len(kind) % len(whole)]
    rewrite(tmp_path, lambda weights: {name: weights[name] for name in weights if name != lost})
    with pytest.raises(
        NotFoundError,
        match=r"are not those of its config.json .*: \d+ (is|are) (missing|incomplete|of another)",
    ):
        load_whole_model(str(tmp_path))
    save_file(
        {f"module.x.{name}": weight for name, weight in whole.items()},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(NotFoundError, match=r"\d+ are missing .*; \d+ are left over \(module.x."):
        load_whole_model(str(tmp_path))


@pytest.fixture
def base(tiny_model_dir, tmp_path):
    return shutil.copytree(tiny_model_dir, tmp_path / "base")


def without(*parts):
    return lambda weights: {name: w for name, w in weights.items() if not any(part in name for part in parts)}


def test_missing_layer_ends_the_run_66_with_names_and_counts(base, lora_config, tmp_path):
    rewrite(base, without("layers.1."))
    for method in ("lora", "none", "pt"):
        with pytest.raises(
            NotFoundError, match=r"9 are missing \(model.layers.1.input_layernorm.weight, .* 6 more"
        ):
            train_here(
                {**lora_config, "model_name_or_path": str(base), "peft_method": method}, tmp_path / "scratch"
            )
    assert not (tmp_path / "out" / "progress.json").exists()


def test_missing_weight_ends_an_evaluation_66(base, tweets, caplog):
    rewrite(base, without("lm_head"))
    assert (
        evaluate(
            [
                "--model",
                str(base),
                "--data",
                str(tweets),
                "--text-field",
                "output",
                "--response-template",
                ":",
            ]
        )
        == 66
    )
    assert "1 is missing (lm_head.weight)" in caplog.text


def test_tied_head_may_be_absent_and_its_embedding_not(base):
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    rewrite(base, without("lm_head"))
    load_whole_model(str(base))
    rewrite(base, without("embed_tokens"))
    with pytest.raises(NotFoundError, match=r"missing \(.*model.embed_tokens.weight"):
        load_whole_model(str(base))


@pytest.mark.parametrize("asked", [{}, {"ignore_mismatched_sizes": True, "use_safetensors": False}])
def test_weight_of_another_shape_is_named_whatever_the_config_asks(base, asked):
    rewrite(base, lambda weights: weights | {"model.norm.weight": torch.ones(3)})
    with pytest.raises(
        NotFoundError, match=r"1 is of another shape \(model.norm.weight \[3\] instead of \[64\]\)"
    ):
        load_whole_model(str(base), **asked)


def test_index_that_lacks_shards_is_missing_their_weights(base):
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(base, max_shard_size="200KB")
    (base / "model.safetensors").unlink()
    index = json.loads((base / "model.safetensors.index.json").read_text())
    load_whole_model(str(base))
    kept = min(index["weight_map"].values())
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file == kept}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    check_model({"model_name_or_path": str(base)}, {})
    with pytest.raises(NotFoundError, match=r"\d+ are missing"):
        load_whole_model(str(base))


def test_leftovers_of_older_releases_and_of_further_heads_are_no_flaw(base):
    extra = (
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.0.attn.masked_bias",
        "mtp.fc.weight",
    )
    rewrite(base, lambda weights: weights | {name: torch.ones(2) for name in extra})
    load_whole_model(str(base))
    rewrite(base, lambda weights: weights | {"model.layers.2.mlp.up_proj.weight": torch.ones(2)})
    with pytest.raises(NotFoundError, match=r"1 is left over \(model.layers.2.mlp.up_proj.weight\)"):
        load_whole_model(str(base))


TEXT = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "intermediate_size_mlp": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2, "linear_num_value_heads": 4,
        "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "depth": 1, "num_heads": 2,
          "num_attention_heads": 2, "image_size": 28, "patch_size": 14, "out_hidden_size": 32}  # fmt: skip


@pytest.mark.parametrize("kind", ["llama4", "qwen3_5", "gemma3"])
def test_text_part_of_a_multimodal_checkpoint_loads_and_not_without_one_of_its_weights(kind, tmp_path):
    whole = AutoConfig.for_model(kind)
    parts = {"text_config": TEXT, "vision_config": VISION}
    sizes = {
        part: {k: v for k, v in keys.items() if k in getattr(whole, part).to_dict()}
        for part, keys in parts.items()
    }
    AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **sizes)).save_pretrained(tmp_path)
    load_whole_model(str(tmp_path))
    rewrite(tmp_path, without("layers.1.mlp", "layers.1.feed_forward"))
    with pytest.raises(NotFoundError, match="missing"):
        load_whole_model(str(tmp_path))


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def as_directory(path):
    path.unlink(missing_ok=True)
    path.mkdir()


DAMAGES = [
    *((name, damage) for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json",
                                  "generation_config.json") for damage in (
        lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"\xff\x00garbage" * 9), cut, as_directory)),
    *((name, lambda path: path.write_text("[1]")) for name in ("config.json", "tokenizer.json", "special_tokens_map.json")),
    ("model.safetensors", lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])),
    ("model.safetensors", lambda path: path.write_bytes((2).to_bytes(8, "little") + b"[]")),
    ("model.safetensors", lambda path: path.write_bytes(path.read_bytes() + b"more")),
    ("model.safetensors", lambda path: path.unlink()),
    ("adapter_config.json", lambda path: path.write_text("{}")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_damaged_file_of_the_base_is_named_before_anything_is_loaded(base, name, damage):
    damage(base / name)
    with pytest.raises(NotFoundError, match=f"{name}") as raised:
        check_model({"model_name_or_path": str(base)}, {})
    assert len(raised.value.reason) < 500


@pytest.mark.parametrize("flaw", ["{}", '{"weight_map": {}}', '{"weight_map": {"w": "model-9.safetensors"}}'])
def test_index_of_nothing_or_of_a_missing_shard_is_named(base, flaw):
    (base / "model.safetensors").unlink()
    (base / "model.safetensors.index.json").write_text(flaw)
    with pytest.raises(
        NotFoundError, match=r"model-9.safetensors does not exist|index.json has no 'weight_map'"
    ):
        check_model({"model_name_or_path": str(base)}, {})


@pytest.mark.parametrize("named_in", ["model.safetensors.index.json", "config.json"])
def test_weights_that_lie_outside_the_model_are_refused(named_in, base, tmp_path):
    """Whatever names them: else they are read outside the allowed roots, and are no part of the identity."""
    weights = (base / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    outside = f"../{weights.name}" if named_in == "config.json" else str(weights)
    names = {"transformers_weights": outside, "weight_map": {"w": outside}}
    said = json.loads((base / "config.json").read_text()) if named_in == "config.json" else {}
    (base / named_in).write_text(json.dumps(said | names))
    with pytest.raises(NotFoundError, match=f"{named_in} names .*, which does not lie in the model's"):
        check_model({"model_name_or_path": str(base)}, {})


def test_shards_in_a_subdirectory_are_read_held_to_the_roots_and_part_of_the_identity(base, tmp_path):
    names = list(load_file(base / "model.safetensors"))
    (base / "shards").mkdir()
    shard = (base / "model.safetensors").rename(base / "shards" / "a.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "shards/a.safetensors")}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    values = {"model_name_or_path": str(base)}
    check_model(values, {"SFT_ALLOWED_ROOTS": str(base)})
    assert list_weight_files(base, values) == [shard]
    load_whole_model(str(base))
    shard.rename(tmp_path / "elsewhere.safetensors")
    shard.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(AccessDeniedError, match=r"elsewhere.safetensors, outside"):
        check_model(values, {"SFT_ALLOWED_ROOTS": str(base)})


@pytest.mark.parametrize(
    "damage", [{"vocab_size": -1}, {"hidden_size": "wide"}, {"num_attention_heads": 7}, {"hidden_act": "x"}]
)
def test_config_json_that_describes_no_model_is_66_also_where_only_loading_shows_it(base, damage):
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, **damage}))
    with pytest.raises(NotFoundError, match="base"):
        load_whole_model(str(base))


@pytest.mark.parametrize("content", ["{}", '{"model": {"type": "BPE"}}', '{"version": 7, "model": null}'])
def test_tokenizer_json_that_is_not_one_is_66(base, content):
    (base / "tokenizer.json").write_text(content)
    with pytest.raises(NotFoundError, match=r"tokenizer .* cannot be loaded from its files \(tokenizer.json"):
        load_tokenizer_files(str(base))


def test_damage_ends_the_run_66_without_a_rank(base, lora_config, tmp_path):
    cut(base / "model.safetensors")
    result = run_here({**lora_config, "model_name_or_path": str(base)})
    assert (result["exit_code"], "Traceback" in result["reason"]) == (66, False)
    assert f"{base / 'model.safetensors'} is damaged" in result["reason"]


def test_type_that_transformers_does_not_know_is_64(base):
    (base / "config.json").write_text('{"model_type": "zzz"}')
    with pytest.raises(ConfigError, match="is of type 'zzz', which transformers .* does not know. Correct"):
        load_whole_model(str(base))


@pytest.mark.parametrize(
    "wrong", [{"attn_implementation": "none"}, {"hidden_size": "wide"}, {"no_such": 1}, {"key_mapping": 3}]
)
def test_argument_that_the_model_does_not_take_is_64(base, wrong):
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_whole_model(str(base), **wrong)


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_file_of_the_base_that_may_not_be_read_is_77(base):
    (base / "model.safetensors").chmod(0)
    with pytest.raises(SFTError, match="model.safetensors cannot be read by user") as raised:
        check_model({"model_name_or_path": str(base)}, {})
    assert raised.value.exit_code == 77
