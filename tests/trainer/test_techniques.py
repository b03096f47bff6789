"""Tuning techniques: each takes steps and changes the weights it should, and no others."""

from __future__ import annotations

import json
import math
import re
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from airflow_provider_sft.contract.errors import ConfigError, DataError
from airflow_provider_sft.contract.settings import resolve_config
from tests import tiny
from tests.trainer.here import run_here, train_here
from trainer.data.batching import PaddedCollator
from trainer.data.prepare import choose_collator
from trainer.files import sha256_file
from trainer.model import grow_vocabulary, load_model, load_tokenizer
from trainer.progress import read_history
from trainer.tuning import apply_peft

LAYERS = ("model.layers.0", "model.layers.1")
ATTENTION = [f"self_attn.{name}_proj" for name in "qkvo"]
MLP = [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
INVOCATION = "### Label:"
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
# DeepSeek-V3's low-rank attention and experts.
MIXTURE = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "num_key_value_heads": 4,
}


def modules(*names: str, layers: tuple[str, ...] = LAYERS) -> set[str]:
    return {f"{layer}.{name}" for layer in layers for name in names}


# What `target_modules` says → the modules that carry LoRA.
TARGETS = [
    (["q_proj", "v_proj"], modules("self_attn.q_proj", "self_attn.v_proj")),
    ("k_proj, o_proj", modules("self_attn.k_proj", "self_attn.o_proj")),
    ("down_proj", modules("mlp.down_proj")),
    (r".*\.1\.(mlp|self_attn)\.(up|q)_proj", modules("mlp.up_proj", "self_attn.q_proj", layers=LAYERS[1:])),
    (["all-linear"], modules(*ATTENTION, *MLP)),
    ("all-linear", modules(*ATTENTION, *MLP)),
    (["layers.0.mlp.gate_proj"], {"model.layers.0.mlp.gate_proj"}),
    (["lm_head"], {"lm_head"}),
    (None, modules("self_attn.q_proj", "self_attn.v_proj")),
]


def settings_of(tiny_model_dir, **keys):
    base = {"training_data_path": "/d", "output_dir": "/o", "torch_dtype": "float32", "lora_dropout": 0.0}
    return resolve_config({**base, "model_name_or_path": str(tiny_model_dir), **keys})


def build(settings):
    """The model as `train` builds it, and the tokenizer."""
    loaded = load_tokenizer(settings)
    model = load_model(settings, attention=None)
    multiple_of = settings.values["embedding_size_multiple_of"]
    new_rows = grow_vocabulary(model, loaded, multiple_of=multiple_of, say=lambda _: None)
    torch.manual_seed(0)
    tuned = apply_peft(model, settings, loaded.tokenizer, new_rows=new_rows, say=print)
    return tuned, loaded.tokenizer


def names_changed_by_training(model, tokenizer) -> set[str]:
    """Two steps, because LoRA's A has no gradient while its B is 0."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = tokenizer(["### Text: @bank the bill is wrong\n\n### Label: complaint"], return_tensors="pt")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
    for _ in range(2):
        model(input_ids=batch.input_ids, labels=batch.input_ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def lora_names(targets: set[str], *parts: str) -> set[str]:
    return {f"base_model.model.{name}.{part}" for name in targets for part in parts}


AB = ("lora_A.default.weight", "lora_B.default.weight")


@pytest.mark.parametrize(("asked", "targets"), TARGETS, ids=[str(asked) for asked, _ in TARGETS])
def test_lora_trains_the_modules_that_target_modules_names_and_nothing_else(tiny_model_dir, asked, targets):
    settings = settings_of(tiny_model_dir, peft_method="lora", target_modules=asked)
    assert names_changed_by_training(*build(settings)) == lora_names(targets, *AB)


def test_lora_dora_trains_magnitudes_besides(tiny_model_dir):
    settings = settings_of(tiny_model_dir, peft_method="lora", target_modules=["q_proj"], use_dora=True)
    parts = (*AB, "lora_magnitude_vector.default.weight")
    assert names_changed_by_training(*build(settings)) == lora_names(modules("self_attn.q_proj"), *parts)


@pytest.mark.parametrize(("use_rslora", "scaling"), [(False, 32 / 16), (True, 32 / math.sqrt(16))])
def test_lora_rslora_divides_alpha_by_the_root_of_the_rank(tiny_model_dir, use_rslora, scaling):
    keys = {"target_modules": ["q_proj"], "use_rslora": use_rslora, "r": 16}
    model, tokenizer = build(settings_of(tiny_model_dir, peft_method="lora", **keys))
    assert model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj").scaling == {
        "default": scaling
    }
    assert names_changed_by_training(model, tokenizer) == lora_names(modules("self_attn.q_proj"), *AB)


def test_lora_that_names_no_module_is_refused(tiny_model_dir):
    settings = settings_of(tiny_model_dir, peft_method="lora", target_modules=["query"])
    sentence = "'target_modules' is [\"query\"], and a 'llama' model has no such layer. Set it to ['all-linear'], or to some of q_proj"
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        build(settings)


def test_lora_that_saves_a_module_which_is_not_there_is_refused(tiny_model_dir):
    keys = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "score"]}
    with pytest.raises(ConfigError, match="'modules_to_save' names 'score', and a 'llama' model has no such"):
        build(settings_of(tiny_model_dir, peft_method="lora", **keys))


def test_full_tuning_of_frozen_weights_is_refused(tiny_model_dir):
    settings = settings_of(tiny_model_dir, peft_method="none")
    model = load_model(settings, attention=None).requires_grad_(False)
    with pytest.raises(DataError, match="Nothing would be trained: peft_method is not set and every weight"):
        apply_peft(model, settings, load_tokenizer(settings).tokenizer, new_rows=0, say=print)


@pytest.fixture
def save_as(tmp_path, tiny_model_dir):
    """A tiny random model of another type, with the tiny model's tokenizer."""

    def save(model_type, **shape):
        directory = shutil.copytree(tiny_model_dir, tmp_path / model_type)
        (directory / "model.safetensors").unlink()
        vocabulary = len(AutoTokenizer.from_pretrained(directory))
        config = AutoConfig.for_model(model_type, vocab_size=vocabulary, **TINY, **shape)
        AutoModelForCausalLM.from_config(config).save_pretrained(directory)
        return directory

    return save


def test_lora_without_target_modules_takes_queries_and_values_where_peft_has_no_default(save_as, capsys):
    model, tokenizer = build(settings_of(save_as("granite"), peft_method="lora"))
    assert names_changed_by_training(model, tokenizer) == lora_names(
        modules("self_attn.q_proj", "self_attn.v_proj"), *AB
    )
    assert "peft has no default for 'granite': it is ['q_proj', 'v_proj']." in capsys.readouterr().out


def test_lora_without_target_modules_leaves_experts_alone(save_as):
    directory = save_as("mixtral", num_local_experts=4, num_key_value_heads=4)
    model, _ = build(settings_of(directory, peft_method="lora", lora_dropout=0.05))
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == lora_names(modules("self_attn.q_proj", "self_attn.v_proj"), *AB)


def test_lora_without_target_modules_is_refused_where_nothing_is_alike(save_as):
    directory = save_as("deepseek_v3", **MIXTURE)
    with pytest.raises(
        ConfigError, match=r"no default for a 'deepseek_v3' model. Set it to .* or to some of q_a_proj"
    ):
        build(settings_of(directory, peft_method="lora"))


def test_lora_dropout_on_experts_is_refused_with_the_key_that_mends_it(save_as):
    directory = save_as("deepseek_v3", **MIXTURE)
    with pytest.raises(ConfigError, match="'lora_dropout' is 0.05, and the experts .* Set lora_dropout to 0"):
        build(settings_of(directory, peft_method="lora", target_modules=["all-linear"], lora_dropout=0.05))


def test_full_tuning_trains_every_weight(tiny_model_dir):
    model, tokenizer = build(settings_of(tiny_model_dir))
    assert names_changed_by_training(model, tokenizer) == set(model.state_dict())


def test_prompt_tuning_trains_the_prompt_alone(tiny_model_dir):
    model, tokenizer = build(settings_of(tiny_model_dir, peft_method="pt"))
    assert names_changed_by_training(model, tokenizer) == {"prompt_encoder.default.embedding.weight"}


def alora_settings(tiny_model_dir, **keys):
    keys = {"peft_method": "alora", "alora_invocation_string": INVOCATION, **keys}
    return settings_of(tiny_model_dir, target_modules=["q_proj", "v_proj"], **keys)


def test_alora_leaves_the_base_models_logits_before_its_invocation(tiny_model_dir):
    model, tokenizer = build(alora_settings(tiny_model_dir))
    assert names_changed_by_training(model, tokenizer) == lora_names(
        modules("self_attn.q_proj", "self_attn.v_proj"), *AB
    )
    ids = tokenizer(f"### Text: the bill is wrong\n\n{INVOCATION} complaint", return_tensors="pt").input_ids
    start = ids[0].tolist().index(tokenizer.encode(INVOCATION)[0], 3)
    with torch.no_grad():
        tuned = model(input_ids=ids).logits[0]
        with model.disable_adapter():
            base = model(input_ids=ids).logits[0]
    assert torch.equal(tuned[:start], base[:start])
    assert not torch.equal(tuned[start:], base[start:])


@pytest.mark.parametrize("method", ["alora", "pt"])
def test_technique_that_acts_on_whole_rows_gets_a_row_for_each_document(tiny_model_dir, method):
    keys = {"alora_invocation_string": INVOCATION} if method == "alora" else {}
    settings = settings_of(tiny_model_dir, peft_method=method, **keys)
    tokenizer = load_tokenizer(settings).tokenizer
    collator = choose_collator(settings, tokenizer, streaming=False, say=lambda _: None)
    assert isinstance(collator, PaddedCollator)


def test_alora_with_packing_is_refused(tiny_model_dir):
    settings = alora_settings(tiny_model_dir, packing=True)
    with pytest.raises(ConfigError, match="packing is on, and an aLoRA adapter is activated once a row"):
        choose_collator(settings, load_tokenizer(settings).tokenizer, streaming=False, say=lambda _: None)


def padded_model(tiny_model_dir, directory, *, tie=False):
    """The tiny model with 37 more rows than the tokenizer has tokens."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    model.config.tie_word_embeddings = tie
    if tie:
        model.tie_weights()
    model.resize_token_embeddings(tiny_vocabulary(model) + 37, mean_resizing=False)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(directory)
    return directory


def tiny_vocabulary(model) -> int:
    return model.get_input_embeddings().weight.shape[0]


def grow(model_dir, *, tokens, multiple_of=1):
    """How the two embeddings look before and after."""
    keys = {"add_special_tokens": [f"<|new-{number}|>" for number in range(tokens)]}
    settings = settings_of(model_dir, embedding_size_multiple_of=multiple_of, **keys)
    loaded, model = load_tokenizer(settings), load_model(settings, attention=None)
    layers = (model.get_input_embeddings, model.get_output_embeddings)
    before = [layer().weight.detach().clone() for layer in layers]
    told = []
    grown = grow_vocabulary(model, loaded, multiple_of=multiple_of, say=told.append)
    return grown, before, [layer().weight.detach() for layer in layers], told


@pytest.mark.parametrize(
    ("tokens", "multiple_of", "grown"), [(1, 1, 1), (3, 8, 8), (0, 64, 48), (0, 1, 0), (0, 8, 0)]
)
def test_vocabulary_grows_to_a_multiple_and_no_row_that_was_there_changes(
    tiny_model_dir, tokens, multiple_of, grown
):
    """The tiny model has 400 rows for 400 tokens."""
    found, before, after, told = grow(tiny_model_dir, tokens=tokens, multiple_of=multiple_of)
    assert found == grown
    for old, new in zip(before, after, strict=True):
        assert new.shape[0] == 400 + grown
        assert torch.equal(new[:400], old)
        torch.testing.assert_close(new[400:], old.mean(dim=0).expand(grown, -1))
    assert told == (
        [f"The vocabulary grew from 400 to {400 + grown} rows for {tokens} new tokens."] if grown else []
    )


@pytest.mark.parametrize("tokens", [0, 1, 37])
def test_padded_vocabulary_with_room_stays_as_it_is(tiny_model_dir, tmp_path, tokens):
    grown, before, after, told = grow(padded_model(tiny_model_dir, tmp_path / "padded"), tokens=tokens)
    assert (grown, told) == (0, [])
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_padded_vocabulary_grows_by_what_does_not_fit_from_the_mean_of_known_rows(tiny_model_dir, tmp_path):
    grown, before, after, _ = grow(padded_model(tiny_model_dir, tmp_path / "padded"), tokens=40)
    assert grown == 3
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[:437], old)
        torch.testing.assert_close(new[437:], old[:400].mean(dim=0).expand(3, -1))


def test_tied_embeddings_stay_tied_when_they_grow(tiny_model_dir, tmp_path):
    _, _, (inputs, outputs), _ = grow(padded_model(tiny_model_dir, tmp_path / "tied", tie=True), tokens=40)
    assert inputs.data_ptr() == outputs.data_ptr()


@pytest.mark.parametrize("key", ["eos_token", "pad_token"])
def test_token_that_the_tokenizer_does_not_know_is_refused(tiny_model_dir, key):
    assert (
        getattr(load_tokenizer(settings_of(tiny_model_dir, **{key: "<|end|>"})).tokenizer, key) == "<|end|>"
    )
    with pytest.raises(
        ConfigError, match=f"Config key '{key}' is '<none>', which the tokenizer does not know"
    ):
        load_tokenizer(settings_of(tiny_model_dir, **{key: "<none>"}))


@pytest.fixture
def three_steps(tiny_model_dir, tweets, tmp_path):
    config = tiny.lora_config(tiny_model_dir, tweets, tmp_path / "out")
    return {**config, "max_steps": 3, "save_strategy": "no", "generate_samples": 1}


@pytest.fixture
def tune(three_steps, tiny_model_dir, tmp_path):
    """A whole run of three steps: its result, and its directory."""

    def tune(**keys):
        base = sha256_file(tiny_model_dir / "model.safetensors")
        result = train_here({**three_steps, **keys}, tmp_path / "scratch")
        assert sha256_file(tiny_model_dir / "model.safetensors") == base
        assert len(read_history(tmp_path / "out")) == result["steps"] == 3
        return result, tmp_path / "out"

    return tune


def adapter_of(run):
    """Its tensors by name, and its config."""
    result, out = run
    assert result["model_kind"] == "adapter"
    config = json.loads((out / "adapter_config.json").read_text())
    return load_file(out / "adapter_model.safetensors"), config


def saved_names(targets, *parts):
    return {f"base_model.model.{name}.{part}" for name in targets for part in parts}


def all_trained(adapter) -> bool:
    """LoRA's B starts at 0."""
    return all(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)


def test_run_of_dora_on_comma_text_saves_trained_magnitudes(tune, tiny_model_dir):
    adapter, config = adapter_of(tune(target_modules="q_proj,v_proj", use_dora=True))
    targets = modules("self_attn.q_proj", "self_attn.v_proj")
    parts = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
    assert set(adapter) == saved_names(targets, *parts)
    assert (config["use_dora"], config["r"], config["lora_alpha"], config["lora_dropout"]) == (
        True,
        8,
        32,
        0.05,
    )
    base = load_file(tiny_model_dir / "model.safetensors")
    assert all_trained(adapter)
    for name in targets:
        magnitude = adapter[f"base_model.model.{name}.lora_magnitude_vector"]
        assert not torch.allclose(magnitude, base[f"{name}.weight"].norm(dim=1))


def test_run_of_rslora_on_a_regular_expression_saves_what_it_names(tune):
    expression = r".*\.layers\.1\.(mlp|self_attn)\.(up|q)_proj"
    adapter, config = adapter_of(tune(target_modules=expression, use_rslora=True, r=4, lora_alpha=8))
    targets = modules("mlp.up_proj", "self_attn.q_proj", layers=LAYERS[1:])
    assert set(adapter) == saved_names(targets, "lora_A.weight", "lora_B.weight")
    assert (config["use_rslora"], config["target_modules"]) == (True, expression)
    assert all_trained(adapter)


def test_run_of_lora_with_added_tokens_saves_old_rows_as_they_were(tune, tiny_model_dir):
    keys = {"add_special_tokens": ["<|a|>", "<|b|>"], "embedding_size_multiple_of": 8}
    _, out = run = tune(**keys)
    adapter, _ = adapter_of(run)
    base = load_file(tiny_model_dir / "model.safetensors")
    ends = {"embed_tokens": "model.embed_tokens.weight", "lm_head": "lm_head.weight"}
    for name in ends.values():
        prefix, old = f"base_model.model.{name.removesuffix('weight')}token_adapter", base[name]
        saved = adapter.pop(f"{prefix}.base_layer.weight")
        assert torch.equal(saved[:400], old)
        torch.testing.assert_close(saved[400:], old.mean(dim=0).expand(8, -1))
        assert (
            adapter.pop(f"{prefix}.trainable_tokens_delta").shape[0] == 2
        )  # of the two tokens, not of the padding
    assert set(adapter) == saved_names(
        modules("self_attn.q_proj", "self_attn.v_proj"), "lora_A.weight", "lora_B.weight"
    )
    assert json.loads((out / "added_tokens_info.json").read_text()) == {
        "num_new_tokens": 8,
        "new_embedding_size": 408,
    }


def test_run_of_full_tuning_keeps_the_padded_vocabulary_and_unused_rows(tune, tiny_model_dir, tmp_path):
    padded = padded_model(tiny_model_dir, tmp_path / "padded")
    _, out = tune(peft_method="none", model_name_or_path=str(padded), add_special_tokens=["<|a|>"])
    before, after = load_file(padded / "model.safetensors"), load_file(out / "model.safetensors")
    assert {name: tensor.shape for name, tensor in after.items()} == {
        name: tensor.shape for name, tensor in before.items()
    }
    assert all(not torch.equal(before[name], after[name]) for name in before)
    # A row of the input embeddings moves only when its token was read.
    assert torch.equal(before["model.embed_tokens.weight"][400:], after["model.embed_tokens.weight"][400:])
    assert len(AutoTokenizer.from_pretrained(out)) == 401


def test_run_of_prompt_tuning_saves_a_prompt_that_moved_from_its_text(tune, tiny_model_dir):
    text = "Is this a complaint?"
    _, out = run = tune(peft_method="pt", prompt_tuning_init_text=text, num_virtual_tokens=5)
    adapter, config = adapter_of(run)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    ids = (tokenizer(text).input_ids * 5)[:5]
    start = load_file(tiny_model_dir / "model.safetensors")["model.embed_tokens.weight"][ids]
    [prompt] = adapter.values()
    assert prompt.shape == start.shape
    assert all(not torch.equal(old, new) for old, new in zip(start, prompt, strict=True))
    assert (config["peft_type"], config["num_virtual_tokens"]) == ("PROMPT_TUNING", 5)
    [sample] = json.loads((out / ".sft.samples.json").read_text())["samples"]
    assert sample["after"] == answer(out, tiny_model_dir, sample["prompt"])


def answer(adapter_dir, model_dir, prompt) -> str:
    """What the saved adapter says to `prompt` when peft loads it."""
    tokenizer = AutoTokenizer.from_pretrained(adapter_dir)
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter_dir).eval()
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False
    )
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


def test_run_of_alora_saves_its_invocation_and_what_it_learned(tune, tiny_model_dir):
    keys = {"alora_invocation_string": INVOCATION, "target_modules": ["q_proj", "k_proj", "v_proj"]}
    _, out = run = tune(peft_method="alora", **keys)
    adapter, config = adapter_of(run)
    targets = modules(*(f"self_attn.{name}_proj" for name in "qkv"))
    assert set(adapter) == saved_names(targets, "lora_A.weight", "lora_B.weight")
    assert all_trained(adapter)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    assert config["alora_invocation_tokens"] == tokenizer.encode(INVOCATION)
    [sample] = json.loads((out / ".sft.samples.json").read_text())["samples"]
    assert sample["after"] == answer(out, tiny_model_dir, sample["prompt"])


def test_run_of_alora_whose_rows_lack_the_invocation_ends_65(three_steps, tmp_path):
    keys = {"peft_method": "alora", "alora_invocation_string": "### Answer:"}
    with pytest.raises(DataError) as raised:
        train_here({**three_steps, **keys}, tmp_path / "scratch")
    assert raised.value.reason.startswith("alora_invocation_string '### Answer:', ")
    assert (
        "is in none of the 64 rows as the tokenizer splits them. Put it into each row's prompt"
        in raised.value.reason
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_run_of_qlora_without_a_gpu_ends_64_with_what_it_needs(three_steps, tmp_path):
    result = run_here({**three_steps, "bnb_qlora": ["nf4"]})
    assert result["exit_code"] == 64
    assert result["reason"].startswith("Config key 'bnb_qlora' is [\"nf4\"], which needs ")
    assert not (tmp_path / "out" / "result.json").exists()
