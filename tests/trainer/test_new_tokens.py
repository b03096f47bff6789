"""Rows of new tokens: trained with an adapter unless the config has them trained or left alone."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from airflow_provider_sft.contract.settings import resolve_config
from tests import tiny
from tests.trainer.here import train_here
from tests.trainer.test_attention import tiny_config
from trainer.export.run import export_for_vllm
from trainer.generate import Generator
from trainer.model import find_new_tokens, grow_vocabulary, load_model, load_tokenizer
from trainer.tuning import apply_peft

TOKENS = ["<|yes|>", "<|no|>"]
ENDS = {"input": "model.embed_tokens", "output": "lm_head"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The tiny model in bfloat16: with and without tied ends, and with 37 rows of padding."""
    root = tmp_path_factory.mktemp("bases")
    for name in ("untied", "tied", "padded"):
        tiny.save_model(root / name, tie=name == "tied")
        model = AutoModelForCausalLM.from_pretrained(root / name, dtype=torch.bfloat16)
        if name == "padded":
            model.resize_token_embeddings(437, mean_resizing=False)
        model.save_pretrained(root / name)
    return root


@pytest.fixture
def config(tmp_path):
    rows = tmp_path / "rows.jsonl"
    text = [
        {"output": f"{TOKENS[n % 2]} hello {TOKENS[n % 2]} {n}\n### Label: {TOKENS[n % 2]}"}
        for n in range(64)
    ]
    rows.write_text("".join(json.dumps(row) + "\n" for row in text))
    keys = {"add_special_tokens": TOKENS, "embedding_size_multiple_of": 8, "torch_dtype": "bfloat16"}
    return {**tiny.lora_config(tmp_path, rows, tmp_path / "out"), **keys}


def rows_of(directory, side, tokens=(400, 401)):
    """As the adapter holds them: trained rows where there are some, else those of the whole matrix."""
    weights, prefix = load_file(directory / "adapter_model.safetensors"), f"base_model.model.{ENDS[side]}"
    if (trained := weights.get(f"{prefix}.token_adapter.trainable_tokens_delta")) is not None:
        return trained.float()
    return weights[f"{prefix}.weight"][list(tokens)].float()


def notices(tmp_path):
    return (tmp_path / "scratch" / "notices-0").read_text()


@pytest.mark.parametrize("kind", ["untied", "tied", "padded"])
def test_new_tokens_rows_are_trained_and_exported_in_every_form(kind, bases, config, tmp_path):
    base, out = bases / kind, tmp_path / "out"
    train_here({**config, "model_name_or_path": str(base)}, tmp_path / "scratch")
    trained = {side: rows_of(out, side) for side in ENDS}
    old = load_file(base / "model.safetensors")["model.embed_tokens.weight"][:400].float().mean(dim=0)
    assert all((rows[0] - rows[1]).abs().max() > 1e-2 < (rows - old).abs().max() for rows in trained.values())
    assert "The rows of 2 new tokens in model.embed_tokens and lm_head are trained" in notices(tmp_path)
    if kind == "tied":
        assert torch.equal(trained["input"], trained["output"])
    tuned = Generator.load(str(base), str(out), max_new_tokens=1)._model
    for side, rows in trained.items():
        assert torch.equal(getattr(tuned, f"get_{side}_embeddings")().weight[400:402], rows)

    for mode in ("adapter", "merged", "both"):
        copy = shutil.copytree(out, tmp_path / mode)
        outcome = export_for_vllm(copy, mode=mode, base_model_dir=base)
        for directory in (copy / name for name in ("merged", "base") if (copy / name).exists()):
            weights = load_file(directory / "model.safetensors")
            for side, name in ENDS.items():
                saved = weights.get(f"{name}.weight", weights["model.embed_tokens.weight"])[400:402]
                assert torch.equal(saved, trained[side].to(saved.dtype))
        if mode != "merged" and kind != "padded":
            moved = load_file(copy / "new_embeddings.safetensors")
            assert all(torch.equal(moved[f"{side}_embeddings"][:2].float(), trained[side]) for side in ENDS)
        right = mode != "adapter" or kind == "padded"
        assert {verdict["verdict"] for verdict in outcome.vllm_verdict} == {
            "loads_right" if right else "loads_wrong"
        }


@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_run_with_new_tokens_resumes_bit_equal(kind, bases, config, tmp_path):
    config |= {"model_name_or_path": str(bases / kind), "lora_dropout": 0.2}
    train_here(config, tmp_path / "scratch")
    whole = load_file(tmp_path / "out" / "adapter_model.safetensors")
    train_here(config, tmp_path / "scratch", resume_from=tmp_path / "out" / "checkpoint-4")
    again = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_new_tokens_are_left_alone_where_the_config_says_so_and_that_is_said(bases, config, tmp_path):
    train_here(
        {**config, "model_name_or_path": str(bases / "untied"), "train_new_tokens": False},
        tmp_path / "scratch",
    )
    first, second = rows_of(tmp_path / "out", "input")
    assert torch.equal(first, second)
    assert (
        "The rows of 2 new tokens stay as they start and are not trained: train_new_tokens is false"
        in notices(tmp_path)
    )


@pytest.mark.parametrize(
    "keys",
    [
        {"train_new_tokens": False},
        {"add_special_tokens": None, "modules_to_save": ["lm_head"], "ensure_weight_tying": False},
    ],
)
def test_checkpoint_of_a_release_that_trained_less_is_gone_on_from_as_it_was(bases, config, tmp_path, keys):
    config |= {"model_name_or_path": str(bases / "tied")} | keys
    train_here(config, tmp_path / "scratch")
    whole = load_file(tmp_path / "out" / "adapter_model.safetensors")
    older = {
        key: value for key, value in config.items() if key not in ("train_new_tokens", "ensure_weight_tying")
    }
    train_here(older, tmp_path / "scratch", resume_from=tmp_path / "out" / "checkpoint-4")
    again = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert "the checkpoint that this run resumes from" in notices(tmp_path)


LLAMA = tuple(ENDS.values())
WINS = [
    ({}, LLAMA, "in model.embed_tokens and lm_head are trained"),
    ({"modules_to_save": ["embed_tokens"]}, ("lm_head",), "in lm_head are trained"),
    ({"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, (), None),
    ({"target_modules": r".*(q_proj|embed_tokens)"}, ("lm_head",), "in lm_head are trained"),
    ({"trainable_token_indices": [400]}, ("model.embed_tokens",), "of 1 new token stay as they start"),
    ({"trainable_token_indices": {"lm_head": [400, 401]}}, ("lm_head",), None),
    ({"peft_method": "pt"}, (), "prompt tuning trains no rows"),
    ({"peft_method": "none"}, (), None),
    ({"peft_method": "alora", "alora_invocation_string": "Label"}, LLAMA, "are trained with the adapter"),
    ({"target_modules": ["all-linear"], "use_dora": True}, LLAMA, "are trained with the adapter"),
]


def adapt(base, *, tie=False, model=None, **keys):
    """The model with its adapter and two new tokens, and what was said."""
    given = {
        "model_name_or_path": str(base),
        "training_data_path": "/d",
        "output_dir": "/o",
        "torch_dtype": "float32",
    }
    settings = resolve_config({**given, "peft_method": "lora", "add_special_tokens": TOKENS, **keys})
    loaded, said = load_tokenizer(settings), []
    model = model or load_model(settings, attention=None)
    new_rows = grow_vocabulary(model, loaded, multiple_of=1, say=said.append)
    new = find_new_tokens(model, loaded, new_rows=new_rows)
    tuned = apply_peft(model, settings, loaded.tokenizer, new_rows=new_rows, new_tokens=new, say=said.append)
    return tuned, " ".join(said)


def rows_trained(tuned):
    """Module → how many single rows of it are trained."""
    ends = {
        name.partition(".token_adapter")[0]: w.shape[0]
        for name, w in tuned.named_parameters()
        if "tokens_delta" in name
    }
    return {name.removeprefix("base_model.model."): count for name, count in ends.items()}


@pytest.mark.parametrize(("keys", "trained", "sentence"), WINS)
def test_what_the_config_has_trained_wins_and_nothing_is_trained_twice(bases, keys, trained, sentence):
    tuned, said = adapt(bases / "untied", **keys)
    assert set(rows_trained(tuned)) == set(trained)
    assert sentence is None or sentence in said


@pytest.mark.parametrize(("kind", "trained"), [
    ("gpt2", {"transformer.wte"}), ("bloom", {"transformer.word_embeddings"}), ("gemma2", {"model.embed_tokens"}),
    ("phi", {"model.embed_tokens"}), ("opt", {"model.decoder.embed_tokens"}), ("gpt_neox", {"gpt_neox.embed_in", "lm_head"}),
])  # fmt: skip
def test_architectures_of_other_names_train_the_rows_of_new_tokens(bases, kind, trained):
    config = tiny_config(kind, vocab_size=400, **({"word_embed_proj_dim": 32} if kind == "opt" else {}))
    model = AutoModelForCausalLM.from_config(config)
    tuned, said = adapt(bases / "tied", model=model, target_modules=["all-linear"])
    assert set(rows_trained(tuned)) == trained
    assert ("lm_head of this model takes no single trained rows" in said) == (
        kind == "phi"
    )  # its LM head has a bias
    ids = torch.tensor([[400, 401, 7]])
    tuned(input_ids=ids, labels=ids).loss.backward()
    assert all(w.grad.abs().sum() > 0 for n, w in tuned.named_parameters() if "tokens_delta" in n)


TIED = [
    ({"target_modules": ["q_proj", "lm_head"]}, True, True),
    ({"target_modules": ["q_proj", "embed_tokens"]}, True, True),
    ({"modules_to_save": ["lm_head"]}, True, False),
    ({"target_modules": ["q_proj", "lm_head"], "ensure_weight_tying": False}, False, True),
]


@pytest.mark.parametrize(("keys", "as_one", "warns"), TIED)
def test_adapted_end_of_a_tied_vocabulary_is_said_and_merges_right(bases, tmp_path, keys, as_one, warns):
    tuned, said = adapt(bases / "tied", add_special_tokens=None, **keys)
    assert tuned.peft_config["default"].ensure_weight_tying is as_one
    assert ("both are trained as one" in said, "merge_and_unload would add" in said) == (as_one, warns)
    for weight in tuned.parameters():
        if weight.requires_grad:
            weight.data += torch.randn_like(weight) * 0.1
    tuned.save_pretrained(tmp_path / "adapter")
    merged = export_for_vllm(
        tmp_path / "adapter", num_new_tokens=0, mode="merged", base_model_dir=bases / "tied"
    ).model_path
    whole = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        wanted = tuned.eval()(input_ids=ids).logits
        assert (
            whole(input_ids=ids).logits - wanted
        ).abs().max() < 0.02 * wanted.abs().max()  # bfloat16 on disk


def test_tokens_are_added_to_a_tokenizer_of_its_own_too(bases, tmp_path):
    own = shutil.copytree(bases / "untied", tmp_path / "own")
    tokenizer = AutoTokenizer.from_pretrained(own)
    tokenizer.add_tokens(["<|mine|>"])
    tokenizer.save_pretrained(own)
    tuned, said = adapt(bases / "untied", tokenizer_name_or_path=str(own))
    assert rows_trained(tuned) == dict.fromkeys(LLAMA, 3)  # the base has no row for its own one either
    assert "grew from 400 to 403 rows" in said
