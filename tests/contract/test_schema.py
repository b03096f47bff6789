"""The shipped schema and its page are what the installed releases say, and JSON schema's own validator agrees with ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_sft.contract.errors import ConfigError
from airflow_provider_sft.contract.explain import explain_key
from airflow_provider_sft.contract.schema import LAUNCH_KEY, config_keys, launch_flags, load_schema
from airflow_provider_sft.contract.values import UnfitError, fit

ROOT = Path(__file__).resolve().parents[2]
KEYS = [key for key in config_keys() if key != LAUNCH_KEY]


@pytest.fixture(scope="module")
def generated():
    """`python -m trainer.schema --check` once: it imports trl, peft and accelerate."""
    return subprocess.run(
        [sys.executable, "-m", "trainer.schema", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_schema_and_page_are_not_stale(generated):
    assert generated.returncode == 0, generated.stdout + generated.stderr


def test_schema_is_a_valid_json_schema():
    jsonschema.Draft202012Validator.check_schema(load_schema())


def test_schema_has_the_peers_keys():
    """fms-hf-tuning 3.2's own keys, besides transformers' and PEFT's."""
    peers = [
        "model_name_or_path",
        "tokenizer_name_or_path",
        "use_flash_attn",
        "flash_attn_implementation",
        "torch_dtype",
        "embedding_size_multiple_of",
        "add_special_tokens",
        "training_data_path",
        "validation_data_path",
        "dataset_text_field",
        "dataset_conversation_field",
        "dataset_image_field",
        "response_template",
        "instruction_template",
        "data_formatter_template",
        "chat_template",
        "data_config_path",
        "max_seq_length",
        "packing",
        "do_dataprocessing_only",
        "num_train_dataset_shards",
        "num_eval_dataset_shards",
        "save_model_dir",
        "trackers",
        "enable_reduce_loss_sum",
        "cache_dir",
        "peft_method",
        "alora_invocation_string",
        "prompt_tuning_init",
        "num_virtual_tokens",
        "prompt_tuning_init_text",
        "quantization_method",
        "dequantize",
        "exp_metadata",
        "padding_free",
        "multipack",
        "fast_kernels",
        "fused_lora",
        "auto_gptq",
        "bnb_qlora",
        "fast_moe",
        "experiment",
        "run_uri_export_path",
        "aim_experiment",
        "aim_repo",
        "aim_remote_server_ip",
        "aim_remote_server_port",
        "aim_url",
        "mlflow_experiment",
        "mlflow_tracking_uri",
        "clearml_project",
        "clearml_task",
        "scanner_output_filename",
        "training_logs_filename",
        "trainer_controller_config_file",
        "lora_post_process_for_vllm",
        "accelerate_launch_args",
        "evaluation_strategy",
        "warmup_ratio",
        "overwrite_output_dir",
        "logging_dir",
    ]
    assert set(peers) <= config_keys().keys()


@pytest.mark.parametrize(
    "key",
    [
        "overwrite_output_dir",
        "per_gpu_train_batch_size",
        "per_gpu_eval_batch_size",
        "warmup_ratio",
        "logging_dir",
        "save_safetensors",
        "no_cuda",
        "use_mps_device",
        "jit_mode_eval",
        "use_ipex",
        "fp16_opt_level",
        "half_precision_backend",
        "tpu_num_cores",
        "tpu_metrics_debug",
        "past_index",
        "fsdp_min_num_params",
        "fsdp_transformer_layer_cls_to_wrap",
        "adafactor",
        "group_by_length",
        "use_legacy_prediction_loop",
        "include_inputs_for_metrics",
        "fp16_backend",
        "push_to_hub_model_id",
        "push_to_hub_organization",
        "push_to_hub_token",
        "mp_parameters",
        "torchdynamo",
        "ray_scope",
        "include_tokens_per_second",
        "max_seq_length",
    ],
)
def test_schema_key_that_transformers_dropped_since_the_peer_is_still_known(key):
    assert key in config_keys()


@pytest.mark.parametrize("key", KEYS)
def test_schema_key_is_typed_described_and_grouped(key):
    prop = config_keys()[key]
    assert prop["description"].rstrip().endswith((".", "!", "?", ")"))
    if "x-gone" not in prop:
        assert {"type", "enum", "anyOf"} & prop.keys()
        assert prop["x-section"]
        assert prop["x-group"]


@pytest.mark.parametrize("key", [key for key in KEYS if "default" in config_keys()[key]])
def test_schema_default_fits_its_own_key(key):
    prop = config_keys()[key]
    assert fit(prop["default"], prop) == prop["default"]


@pytest.mark.parametrize("key", [key for key in KEYS if "x-moved-to" in config_keys()[key]])
def test_schema_former_name_leads_to_a_key_that_takes_its_values(key):
    prop = config_keys()[key]
    target = config_keys()[prop["x-moved-to"]]
    assert "x-moved-to" not in target
    for value in prop.get("x-moved-values", {}).values():
        assert value is None or fit(value, target) == value


def test_schema_flags_that_run_other_code_are_refused():
    refused = {name for name, prop in launch_flags().items() if "x-refused" in prop}
    assert refused == {
        "module",
        "no_python",
        "main_training_function",
        "training_script",
        "training_script_args",
        "env",
        "aws_access_key_id",
        "aws_secret_access_key",
        "help",
    }


@pytest.mark.parametrize(
    ("flag", "kind"),
    [
        ("quiet", "switch"),
        ("num_processes", "value"),
        ("vm", "append"),
        ("megatron_lm_use_custom_fsdp", "truthy"),
        ("fsdp_offload_params", "value"),
    ],
)
def test_schema_flag_says_how_it_is_written(flag, kind):
    assert launch_flags()[flag]["x-kind"] == kind


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-10, 10_000)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(
        ["true", "no", "1e-5", "8", "none", "lora", "auto", "huggingface", "", "text", "steps"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(KEYS), VALUES)
def test_fit_agrees_with_json_schemas_own_validator(key, value):
    """What ours gives, jsonschema takes; what jsonschema takes as it is, ours takes."""
    prop = config_keys()[key]
    validator = jsonschema.Draft202012Validator(prop)
    try:
        fitted = fit(value, prop)
    except UnfitError:
        assert not validator.is_valid(value)
        return
    assert validator.is_valid(fitted)


def test_explain_key_says_meaning_choices_and_default():
    assert explain_key("lora_dropout") == (
        "lora_dropout\n"
        "  Dropout before LoRA's layers.\n"
        "  Takes a number of at least 0 and below 1.\n"
        "  Default: 0.05"
    )
    assert explain_key("max_seq_length") == (
        "max_seq_length\n  It is now called max_length.\n  Takes a whole number of at least 1, or null."
    )
    assert "Needs the extra 'bitsandbytes'." in explain_key("bnb_qlora")
    assert "num_processes: " in explain_key(LAUNCH_KEY)


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("peft_metod", "Unknown config key 'peft_metod'. Did you mean 'peft_method'?"),
        (
            "accelerate_launch_args.q",
            "accelerate_launch_args key 'q' is a short flag. Use the long name 'quiet'.",
        ),
    ],
)
def test_explain_key_unknown_one_is_corrected(key, sentence):
    with pytest.raises(ConfigError) as raised:
        explain_key(key)
    assert raised.value.reason == sentence
