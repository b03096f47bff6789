"""What the trainer reads: present names, the peer's defaults, and a sentence for each key that changed its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_provider_sft.contract.errors import ConfigError
from airflow_provider_sft.contract.schema import config_keys
from airflow_provider_sft.contract.settings import resolve_config

CONFIGS = Path(__file__).parent / "configs"
RIGHT = {
    "model_name_or_path": "/models/m",
    "training_data_path": "/data/t.jsonl",
    "output_dir": "/out/run-1",
    "dataset_text_field": "text",
}


def resolve(**changes):
    return resolve_config({**RIGHT, **changes})


def test_resolve_config_omitted_keys_have_the_peers_values():
    values = resolve().values
    peers = {
        "learning_rate": 5e-5,
        "gradient_checkpointing": False,
        "max_length": 4096,
        "dtype": "bfloat16",
        "bf16": False,
        "save_strategy": "epoch",
        "logging_strategy": "epoch",
        "report_to": "none",
        "peft_method": "none",
        "r": 8,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "num_virtual_tokens": 8,
        "embedding_size_multiple_of": 1,
        "trackers": ["file_logger"],
        "num_train_epochs": 3.0,
        "per_device_train_batch_size": 8,
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "packing": False,
        "overwrite": False,
        "hang_timeout_s": 3600.0,
        "vllm_export": "adapter",
        "prepared_data_dir": None,
        "report": True,
        "generate_samples": 3,
        "accelerate_launch_args": {},
    }
    assert {key: values[key] for key in peers} == peers


def test_resolve_config_every_present_key_has_a_value():
    former_or_gone = {key for key, prop in config_keys().items() if {"x-moved-to", "x-gone"} & prop.keys()}
    assert resolve().values.keys() == config_keys().keys() - former_or_gone


def test_resolve_config_defaults_are_not_shared_between_runs():
    resolve().values["trackers"].append("aim")
    assert resolve().values["trackers"] == ["file_logger"]


def test_resolve_config_wrong_raises_64():
    with pytest.raises(ConfigError, match="Unknown config key 'lerning_rate'. Did you mean 'learning_rate'?"):
        resolve(lerning_rate=1)


@pytest.mark.parametrize(
    ("former", "value", "present", "meaning"),
    [
        ("max_seq_length", 2048, "max_length", 2048),
        ("torch_dtype", "float32", "dtype", "float32"),
        ("warmup_ratio", 0.03, "warmup_steps", 0.03),
        ("use_flash_attn", False, "attn_implementation", "sdpa"),
        ("use_flash_attn", True, "attn_implementation", "auto"),
        ("flash_attn_implementation", "flash_attention_2", "attn_implementation", "flash_attention_2"),
        ("overwrite_output_dir", True, "overwrite", True),
        ("per_gpu_train_batch_size", 2, "per_device_train_batch_size", 2),
        ("no_cuda", True, "use_cpu", True),
        ("adafactor", True, "optim", "adafactor"),
        ("group_by_length", True, "train_sampling_strategy", "group_by_length"),
    ],
)
def test_resolve_config_former_name_works_and_is_named_once(former, value, present, meaning):
    settings = resolve(**{former: value})
    assert settings.values[present] == meaning
    assert present in settings.given
    assert former not in settings.values
    named = [notice for notice in settings.notices if f"'{former}'" in notice]
    assert len(named) == 1
    assert present in named[0]


def test_resolve_config_moved_notice_reads_as_a_sentence():
    assert resolve(max_seq_length=10).notices == ("Config key 'max_seq_length' is now called 'max_length'.",)
    assert resolve(use_flash_attn=False).notices == (
        'Config key \'use_flash_attn\' is now written "attn_implementation": "sdpa".',
    )
    assert resolve(adafactor=False).notices == (
        "Config key 'adafactor' belongs to 'optim' now, and changes nothing.",
    )


def test_resolve_config_eval_strategy_keeps_its_former_name():
    settings = resolve(evaluation_strategy="epoch", validation_data_path="/v.jsonl")
    assert settings.values["eval_strategy"] == "epoch"


def test_resolve_config_both_names_with_one_value_is_fine():
    assert resolve(max_seq_length=10, max_length=10).values["max_length"] == 10


def test_resolve_config_warmup_steps_win_over_warmup_ratio_as_in_the_peer():
    assert resolve(warmup_ratio=0.1, warmup_steps=5).values["warmup_steps"] == 5
    assert resolve(warmup_ratio=0.1, warmup_steps=0).values["warmup_steps"] == 0.1


def test_resolve_config_flash_attention_is_off_whatever_implementation_is_named():
    settings = resolve(use_flash_attn=False, flash_attn_implementation="flash_attention_2")
    assert settings.values["attn_implementation"] == "sdpa"


def test_resolve_config_adafactor_false_leaves_the_optimiser_alone():
    settings = resolve(adafactor=False, optim="sgd")
    assert settings.values["optim"] == "sgd"
    assert "optim" not in resolve(adafactor=False).given


def test_resolve_config_key_that_nothing_reads_is_passed_over_with_a_sentence():
    settings = resolve(save_safetensors=True)
    assert settings.notices == (
        "Config key 'save_safetensors' is ignored: Weights are always saved as safetensors; drop it.",
    )
    assert "save_safetensors" not in settings.values


@pytest.mark.parametrize(
    ("changes", "notice"),
    [
        (
            {"r": 16, "lora_alpha": 8},
            (
                "r, lora_alpha have no effect: peft_method is 'none', so all weights are trained. "
                "Set peft_method to 'lora' for an adapter."
            ),
        ),
        (
            {"logging_steps": 5},
            "logging_steps has no effect: logging_strategy is 'epoch'. Set logging_strategy to 'steps' to use it.",
        ),
        (
            {"validation_data_path": "/v.jsonl", "eval_strategy": "no"},
            (
                "validation_data_path is not evaluated on: eval_strategy is 'no'. "
                "Set it to 'epoch' or 'steps' to evaluate."
            ),
        ),
        (
            {"trackers": ["hf_resource_scanner"]},
            "The tracker 'hf_resource_scanner' has no counterpart here and is ignored.",
        ),
        (
            {"fast_kernels": [True, True, True]},
            (
                "fast_kernels has no counterpart here and changes no number: "
                "set use_liger_kernel for fused kernels on GPUs."
            ),
        ),
        (
            {"peft_method": "lora", "enable_reduce_loss_sum": True},
            "enable_reduce_loss_sum has no effect on an adapter, as in fms-hf-tuning.",
        ),
        (
            {"peft_method": "lora", "alora_invocation_string": "<|a|>", "num_virtual_tokens": 4},
            "alora_invocation_string, num_virtual_tokens have no effect: peft_method is 'lora'.",
        ),
        ({"peft_method": "pt", "r": 4}, "r has no effect: peft_method is 'pt'."),
        (
            {"disable_tqdm": False},
            "disable_tqdm has no effect: the trainer prepares rows, tells progress and watches the loss itself.",
        ),
        (
            {"scanner_output_filename": "a.json"},
            "scanner_output_filename has no effect: 'hf_resource_scanner' has no counterpart here.",
        ),
    ],
)
def test_resolve_config_key_without_effect_is_said(changes, notice):
    assert resolve(**changes).notices == (notice,)


def test_resolve_config_config_without_surprises_says_nothing():
    assert resolve(peft_method="lora", r=16, save_strategy="steps", save_steps=5).notices == ()


@pytest.mark.parametrize(
    ("given", "value"),
    [(["huggingface"], True), ("huggingface", True), (True, True), (False, False), (None, None)],
)
def test_resolve_config_padding_free_has_the_peers_spelling_too(given, value):
    assert resolve(padding_free=given).values["padding_free"] is value


@pytest.mark.parametrize("method", ["none", "None", None])
def test_resolve_config_full_tuning_has_three_spellings(method):
    assert resolve(peft_method=method).values["peft_method"] == "none"


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("q_proj,v_proj", ["q_proj", "v_proj"]),
        ("self_attn.q_proj , lm_head", ["self_attn.q_proj", "lm_head"]),
        ("q_proj", ["q_proj"]),
        (r".*\.[qv]_proj", r".*\.[qv]_proj"),
        (r".*\.layers\.\d{1,2}\.mlp\.up_proj", r".*\.layers\.\d{1,2}\.mlp\.up_proj"),
        ("all-linear", "all-linear"),
        (["all-linear"], ["all-linear"]),
        (None, None),
    ],
)
def test_resolve_config_target_modules_as_one_text_of_names_are_a_list(given, value):
    assert resolve(peft_method="lora", target_modules=given).values["target_modules"] == value


@pytest.mark.parametrize("key", ["model_init_kwargs", "lr_scheduler_kwargs", "fsdp_config", "exp_metadata"])
def test_resolve_config_object_as_json_text_becomes_the_object(key):
    assert resolve(**{key: '{"a": [1]}'}).values[key] == {"a": [1]}


def test_resolve_config_text_of_a_text_key_stays_text():
    assert resolve(chat_template='{"a": 1}', fsdp_config="/fsdp.json").values["chat_template"] == '{"a": 1}'


def test_section_training_is_what_was_given_and_what_differs_from_trl():
    section = resolve(per_device_train_batch_size=2).section("training")
    assert section == {
        "bf16": False,
        "gradient_checkpointing": False,
        "learning_rate": 5e-5,
        "logging_steps": 500,
        "logging_strategy": "epoch",
        "max_length": 4096,
        "output_dir": "/out/run-1",
        "per_device_train_batch_size": 2,
        "save_strategy": "epoch",
    }


def test_section_peft_becomes_a_lora_config_of_the_peers_defaults():
    section = resolve(peft_method="lora", target_modules=["q_proj"]).section("peft")
    assert section["lora_alpha"] == 32
    assert section["lora_dropout"] == 0.05
    assert section["target_modules"] == ["q_proj"]
    assert "use_dora" not in section


def test_section_model_has_every_key_of_it():
    assert resolve().section("model")["dtype"] == "bfloat16"


def test_resolve_config_flag_that_argparse_reads_as_bool_of_text_becomes_that_text():
    flags = {"megatron_lm_use_custom_fsdp": True, "parallelism_config_sp_seq_length_is_variable": False}
    assert resolve(accelerate_launch_args=flags).values["accelerate_launch_args"] == {
        "megatron_lm_use_custom_fsdp": "true",
        "parallelism_config_sp_seq_length_is_variable": "",
    }


@pytest.mark.parametrize("name", ["two_gpu_fsdp", "config_map", "kubeflow"])
def test_resolve_config_seed_example_keeps_every_value(name):
    config = json.loads((CONFIGS / f"{name}.json").read_text())
    values = resolve_config(config).values
    moved = config.pop("use_flash_attn", None)
    assert {key: values[key] for key in config} == config
    assert values["attn_implementation"] == ("auto" if moved is None else "sdpa")
