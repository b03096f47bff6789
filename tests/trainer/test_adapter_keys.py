"""Every key of PEFT's: with a plausible or a wrong value it builds a model that trains, or ends as the user's mistake."""

from __future__ import annotations

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from airflow_provider_sft.contract.errors import ConfigError, SFTError
from airflow_provider_sft.contract.schema import config_keys
from airflow_provider_sft.contract.settings import resolve_config
from trainer.model_files import check_model
from trainer.tuning import apply_peft

# Works, or why it is refused (64), naming the key. The objects and lists are each given empty, odd and full.
VALUES = {
    "alora_invocation_tokens": [([1, 2], None)],
    "alpha_pattern": [({"q_proj": 4}, None), ({"q_proj": "a"}, "alpha_pattern")],
    "arrow_config": [({"top_k": 2}, "routes among adapters that are trained already")],
    "bias": [("all", None), ("lora_only", None)],
    "corda_config": [({}, "CorDA looks at data before the training")],
    "ensure_weight_tying": [(True, None)],
    "eva_config": [({"rho": 2.0}, "EVA looks at data before the training")],
    "exclude_modules": [(["v_proj"], None)],
    "fan_in_fan_out": [(True, None)],
    "init_lora_weights": [
        *((value, None) for value in (True, False, "gaussian", "olora", "pissa", "pissa_niter_4", "orthogonal", "mica")),
        ("loftq", "package 'scipy' is needed for that and is not installed"),
        *((value, "looks at data before the training") for value in ("eva", "corda")),
    ],
    "kasa_config": [({"beta": 0.1}, None), ({"alpha": 1}, "kasa_config.alpha' is unknown")],
    "layer_replication": [([[0, 1], [0, 2]], None), ([[0, 99]], "layer_replication"), ([[1]], "layer_replication")],
    "layers_pattern": [(["layers"], "layers_pattern")],
    "layers_to_transform": [([0], None), ([77], "layers_to_transform")],
    "loftq_config": [({"loftq_bits": 4}, None)],
    "lora_alpha": [(1, None)],
    "lora_bias": [(True, None)],
    "lora_dropout": [(0.9, None)],
    "lora_ga_config": [({}, "LoRA-GA looks at gradients")],
    "megatron_config": [({"hidden_size": 8}, "Layers of Megatron-LM are not trained here")],
    "megatron_core": [("x.y", "Layers of Megatron-LM are not trained here")],
    "modules_to_save": [(["lm_head"], None), (["nowhere"], "modules_to_save")],
    "monteclora_config": [({}, None), ({"odd": 1}, "monteclora_config")],
    "qalora_group_size": [(8, None)],
    "r": [(512, None)],
    "rank_pattern": [({"q_proj": 2}, None), ({"q_proj": 0}, "rank_pattern"), ({"q_proj": "a"}, "rank_pattern")],
    "revision": [("main", None)],
    "target_modules": [("[a(", "target_modules"), (["norm"], "target_modules"), (["nowhere"], "target_modules")],
    "target_parameters": [(["q_proj.weight"], "target_parameters")],
    "trainable_token_indices": [
        ([1], None), ([], "from 0 to 399"), ([400], "from 0 to 399"), ([-1], "from 0 to 399"),
        ({"nowhere": [1]}, "trainable_token_indices"), ({"q_proj": [1]}, "trainable_token_indices"),
        ({"embed_tokens": "x"}, "from 0 to 399"),
    ],
    "use_bdlora": [({}, "use_bdlora"), ({"odd": 1}, "use_bdlora.odd' is unknown")],
    "use_dora": [(True, None)],
    "use_qalora": [(True, None)],
    "use_rslora": [(True, None)],
    "velora_config": [({}, None), ({"odd": 1}, "velora_config.odd' is unknown")],
}  # fmt: skip
# Of other techniques: tests/trainer/test_techniques.py, test_activation.py.
ELSEWHERE = {
    "peft_method",
    "num_virtual_tokens",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "alora_invocation_string",
}
CASES = [(key, value, refusal) for key, cases in VALUES.items() for value, refusal in cases]


def test_every_key_of_pefts_is_walked():
    keys = {
        key
        for key, prop in config_keys().items()
        if prop.get("x-section") == "peft" or "LoRA" in prop.get("x-group", "")
    }
    assert keys - ELSEWHERE <= set(VALUES)


def build(model_dir, **keys):
    given = {
        "model_name_or_path": str(model_dir),
        "training_data_path": "/d",
        "output_dir": "/o",
        "peft_method": "lora",
    }
    settings, said = resolve_config({**given, "torch_dtype": "float32", **keys}), []
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    return apply_peft(model, settings, tokenizer, new_rows=0, say=said.append), said


@pytest.mark.parametrize(("key", "value", "refusal"), CASES, ids=lambda part: str(part)[:30])
def test_value_of_an_adapter_key_trains_or_is_64_with_the_key(tiny_model_dir, key, value, refusal):
    ids = torch.arange(3, 20)[None]
    if refusal is None:
        build(tiny_model_dir, **{key: value})[0](input_ids=ids, labels=ids).loss.backward()
        return
    with pytest.raises(SFTError, match=refusal) as raised:
        build(tiny_model_dir, **{key: value})
    assert raised.value.exit_code == 64
    assert key in raised.value.reason
    assert "\n" not in raised.value.reason


@pytest.mark.parametrize(
    ("keys", "warning"),
    [
        (
            {"target_parameters": ["nowhere"]},
            r"peft warns: target_parameters=\['nowhere'\] were set but no parameter",
        ),
        ({"loftq_config": {"loftq_bits": 4}}, "peft warns: `loftq_config` specified but will be ignored"),
        (
            {"exclude_modules": ["odd"]},
            "peft warns: You have passed exclude_modules=.* but no modules were excluded",
        ),
        ({"rank_pattern": {"odd": 4}}, "peft warns: The following rank_pattern keys did not match any"),
    ],
)
def test_what_peft_only_warns_of_is_a_notice(tiny_model_dir, keys, warning):
    assert any(re.search(warning, notice) for notice in build(tiny_model_dir, **keys)[1])


def test_mxfp4_for_a_base_that_is_not_stored_so_is_64_with_the_true_cause(tiny_model_dir):
    with pytest.raises(
        ConfigError, match="'quantization_method' is 'mxfp4' but the weights .* are not stored in MXFP4"
    ):
        check_model({"model_name_or_path": str(tiny_model_dir), "quantization_method": "mxfp4"}, {})


def test_list_that_peft_extends_stays_as_the_config_has_it(tiny_model_dir, tmp_path):
    saved = ["lm_head"]
    build(tiny_model_dir, modules_to_save=saved, trainable_token_indices=[1])
    assert json.dumps(saved) == '["lm_head"]'
