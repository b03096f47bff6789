"""Every wrong config has its one sentence; right ones, and the peer's, pass as they are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_sft.contract.errors import ConfigError
from airflow_provider_sft.contract.schema import config_keys, launch_flags
from airflow_provider_sft.contract.validation import check_config, examine_config, validate_config

CONFIGS = Path(__file__).parent / "configs"
RIGHT = {
    "model_name_or_path": "/models/m",
    "training_data_path": "/data/t.jsonl",
    "output_dir": "/out/run-1",
    "dataset_text_field": "text",
}
WITHOUT = object()  # the key is left out


def with_changes(changes):
    return {key: value for key, value in {**RIGHT, **changes}.items() if value is not WITHOUT}


WRONG = [
    (
        {"output_dir": WITHOUT},
        'Config key \'output_dir\' is missing. Add it, for example "output_dir": "/data/output/run-1".',
    ),
    (
        {"model_name_or_path": WITHOUT},
        'Config key \'model_name_or_path\' is missing. Add it, for example "model_name_or_path": "/data/models/granite-3.1-2b".',
    ),
    (
        {"training_data_path": WITHOUT},
        'Config key \'training_data_path\' is missing. Add it, for example "training_data_path": "/data/input/train.jsonl", or describe the data in a data_config_path.',
    ),
    ({"learning_rte": 1e-05}, "Unknown config key 'learning_rte'. Did you mean 'learning_rate'?"),
    ({"learning-rate": 1e-05}, "Unknown config key 'learning-rate'. Did you mean 'learning_rate'?"),
    ({"Learning_Rate": 1}, "Unknown config key 'Learning_Rate'. Did you mean 'learning_rate'?"),
    ({"lora_r": 8}, "Unknown config key 'lora_r'. Did you mean 'r'?"),
    ({"batch_size": 4}, "Unknown config key 'batch_size'. Did you mean 'per_device_train_batch_size'?"),
    ({"frobnicate": 1}, "Unknown config key 'frobnicate'. Remove it; `sft-config schema` lists the keys."),
    (
        {"num_processes": 2},
        "Unknown config key 'num_processes'. It is a flag of accelerate: put it into accelerate_launch_args.",
    ),
    (
        {"output_dir": WITHOUT, "output_dri": "/o"},
        "Unknown config key 'output_dri'. Did you mean 'output_dir'?",
    ),
    ({"multiGPU": {}}, "Unknown config key 'multiGPU'. Did you mean 'accelerate_launch_args'?"),
    (
        {"learning_rate": "fast"},
        "Config key 'learning_rate' is 'fast'. Give a number of at least 0, for example 5e-05.",
    ),
    (
        {"per_device_train_batch_size": 2.5},
        "Config key 'per_device_train_batch_size' is 2.5. Give a whole number of at least 1, for example 8.",
    ),
    (
        {"per_device_train_batch_size": None},
        "Config key 'per_device_train_batch_size' is null. Give a whole number of at least 1, for example 8.",
    ),
    ({"bf16": "maybe"}, "Config key 'bf16' is 'maybe'. Give true, false or null."),
    ({"packing": 1}, "Config key 'packing' is 1. Give true or false."),
    ({"output_dir": 5}, "Config key 'output_dir' is 5. Give text, for example \"/data/output/run-1\"."),
    ({"run_name": 7}, "Config key 'run_name' is 7. Give text or null."),
    (
        {"add_special_tokens": "<a>"},
        "Config key 'add_special_tokens' is '<a>'. Give a list of texts, or null.",
    ),
    ({"add_special_tokens": ["<a>", 3]}, "Config key 'add_special_tokens[1]' is 3. Give text."),
    ({"loftq_config": "x"}, "Config key 'loftq_config' is 'x'. Give an object."),
    (
        {"target_modules": {"q": 1}},
        'Config key \'target_modules\' is {"q": 1}. Give text, a list of texts or null, for example ["q_proj", "v_proj"].',
    ),
    (
        {"max_length": "long"},
        "Config key 'max_length' is 'long'. Give a whole number of at least 1, or null, for example 4096.",
    ),
    ({"seed": -1}, "Config key 'seed' is -1. Give a whole number from 0 to 4294967295, for example 42."),
    (
        {"learning_rate": True},
        "Config key 'learning_rate' is true. Give a number of at least 0, for example 5e-05.",
    ),
    (
        {"peft_method": "LORA"},
        "Config key 'peft_method' is 'LORA'. Did you mean 'lora'? It takes 'none', 'lora', 'alora', 'pt' or null.",
    ),
    (
        {"peft_method": "qlora"},
        "Config key 'peft_method' is 'qlora'. Use 'lora' with \"bnb_qlora\": [\"nf4\"].",
    ),
    (
        {"lr_scheduler_type": "cosin"},
        "Config key 'lr_scheduler_type' is 'cosin'. Did you mean 'cosine'? It takes 'linear', 'cosine', 'cosine_with_restarts', 'polynomial', 'constant', 'constant_with_warmup', 'inverse_sqrt', 'reduce_lr_on_plateau', 'cosine_with_min_lr', 'cosine_warmup_with_min_lr', 'warmup_stable_decay' or 'greedy'.",
    ),
    (
        {"optim": "adamw_hf"},
        "Config key 'optim' is 'adamw_hf'. Did you mean 'adamw_torch'? It takes one of 41 names, which docs/config.md lists.",
    ),
    ({"dtype": "bf16"}, "Config key 'dtype' is 'bf16'. Use 'bfloat16'."),
    (
        {"save_strategy": "epochs"},
        "Config key 'save_strategy' is 'epochs'. Did you mean 'epoch'? It takes 'no', 'steps', 'epoch' or 'best'.",
    ),
    (
        {"trackers": ["mlfow"]},
        "Config key 'trackers[0]' is 'mlfow'. Did you mean 'mlflow'? It takes 'file_logger', 'tensorboard', 'mlflow', 'aim', 'clearml' or 'hf_resource_scanner'.",
    ),
    (
        {"vllm_export": "merge"},
        "Config key 'vllm_export' is 'merge'. Did you mean 'merged'? It takes 'adapter', 'merged' or 'both'.",
    ),
    ({"bias": "some"}, "Config key 'bias' is 'some'. Give 'none', 'all' or 'lora_only'."),
    (
        {"init_lora_weights": "gausian"},
        "Config key 'init_lora_weights' is 'gausian'. Did you mean 'gaussian'? It takes true, false, 'gaussian', 'olora', 'pissa', 'loftq', 'orthogonal', 'mica' or text such as 'pissa_niter_16'.",
    ),
    (
        {"pad_to_multiple_of": "always"},
        "Config key 'pad_to_multiple_of' is 'always'. Give a whole number of at least 1, 'auto' or null, for example \"auto\".",
    ),
    (
        {"padding_free": ["unsloth"]},
        "Config key 'padding_free' is [\"unsloth\"]. Give true, false, null, 'huggingface' or a list such as [\"huggingface\"].",
    ),
    ({"bnb_qlora": ["nf5"]}, "Config key 'bnb_qlora[0]' is 'nf5'. Give 'nf4' or 'fp4'."),
    ({"bnb_qlora": []}, "Config key 'bnb_qlora' is []. Give a list such as [\"nf4\"], or null."),
    (
        {"lora_dropout": 1.5},
        "Config key 'lora_dropout' is 1.5. Give a number of at least 0 and below 1, for example 0.05.",
    ),
    (
        {"per_device_train_batch_size": 0},
        "Config key 'per_device_train_batch_size' is 0. Give a whole number of at least 1, for example 8.",
    ),
    (
        {"learning_rate": -1},
        "Config key 'learning_rate' is -1. Give a number of at least 0, for example 5e-05.",
    ),
    ({"num_train_epochs": 0}, "Config key 'num_train_epochs' is 0. Give a number above 0, for example 3.0."),
    ({"r": 0}, "Config key 'r' is 0. Give a whole number of at least 1, for example 8."),
    ({"warmup_ratio": 3}, "Config key 'warmup_ratio' is 3. Give a number of at least 0 and below 1."),
    ({"hang_timeout_s": 0}, "Config key 'hang_timeout_s' is 0. Give a number above 0, for example 3600.0."),
    ({"learning_rate": float("nan")}, "Config key 'learning_rate' is NaN. Give a finite number."),
    ({"max_grad_norm": float("inf")}, "Config key 'max_grad_norm' is infinite. Give a finite number."),
    (
        {"training_data_path": PurePosixPath("/data")},
        "Config key 'training_data_path' is of type PurePosixPath, which JSON cannot hold. Give text, a number, true, false or a list.",
    ),
    (
        {"run_name": "\ud800"},
        "Config key 'run_name' holds half of a surrogate pair, which is no character. Write the whole character.",
    ),
    (
        {"lr_scheduler_kwargs": {1: 2}},
        "Config key 'lr_scheduler_kwargs' has a key of type int. Put it in quotes.",
    ),
    (
        {"max_seq_length": 2048, "max_length": 1024},
        "Config keys 'max_length' (1024) and 'max_seq_length' (2048) are the same thing. Keep 'max_length'.",
    ),
    (
        {"max_seq_length": "long"},
        "Config key 'max_seq_length' is 'long'. Give a whole number of at least 1, or null.",
    ),
    (
        {"save_safetensors": False},
        "Config key 'save_safetensors' is false. Weights are always saved as safetensors; drop it.",
    ),
    (
        {"task_type": "SEQ_CLS"},
        "Config key 'task_type' is 'SEQ_CLS'. Causal language models alone are tuned; drop it.",
    ),
    (
        {"push_to_hub_organization": "me"},
        "Config key 'push_to_hub_organization' is 'me'. Write \"hub_model_id\": \"organization/name\".",
    ),
    (
        {"evaluation_strategy": "epohc"},
        "Config key 'evaluation_strategy' is 'epohc'. Did you mean 'epoch'? It takes 'no', 'steps' or 'epoch'.",
    ),
    (
        {"data_config_path": "/d.yaml"},
        "Config keys 'data_config_path' ('/d.yaml') and 'training_data_path' ('/data/t.jsonl') exclude each other. Name the file in the data config, or drop 'data_config_path'.",
    ),
    (
        {"data_config_path": "/d.yaml", "training_data_path": WITHOUT, "validation_data_path": "/v.jsonl"},
        "Config keys 'data_config_path' ('/d.yaml') and 'validation_data_path' ('/v.jsonl') exclude each other. Name the file in the data config, or drop 'data_config_path'.",
    ),
    (
        {"eval_strategy": "epoch"},
        "Config key 'eval_strategy' is 'epoch' but there is nothing to evaluate on. Add validation_data_path, or set eval_strategy to 'no'.",
    ),
    (
        {"load_best_model_at_end": True},
        "Config key 'load_best_model_at_end' is true but eval_strategy is 'no', so no model is the best. Set eval_strategy to what save_strategy is, or drop load_best_model_at_end.",
    ),
    (
        {"save_strategy": "best"},
        "Config key 'save_strategy' is 'best' but eval_strategy is 'no', so no model is the best. Set eval_strategy to 'epoch' or 'steps', or save_strategy to 'epoch'.",
    ),
    (
        {"load_best_model_at_end": True, "validation_data_path": "/v.jsonl", "save_strategy": "steps"},
        "Config key 'load_best_model_at_end' needs save_strategy ('steps') and eval_strategy ('epoch') to be the same. Set both to 'epoch'.",
    ),
    (
        {"lr_scheduler_type": "greedy"},
        "Config key 'lr_scheduler_type' is 'greedy', which follows the evaluation loss, but nothing is evaluated. Add validation_data_path, or choose another schedule.",
    ),
    (
        {"model_init_kwargs": "fast"},
        "Config key 'model_init_kwargs' is 'fast'. Give an object, null or text such as '{\"a\": 1}'.",
    ),
    (
        {"model_init_kwargs": "{a: 1}"},
        "Config key 'model_init_kwargs' is '{a: 1}', which is no JSON. Give an object.",
    ),
    (
        {"model_init_kwargs": '{"trust_remote_code": true}'},
        "Config key 'model_init_kwargs.trust_remote_code' is true: Python code that comes with the model would run in the pod. If you trust it, set allow_remote_code=True on the operator (SFT_ALLOW_REMOTE_CODE=true in the trainer's environment); else drop the key.",
    ),
    (
        {"accelerate_launch_args": {"fp8_override_linear_precision": "x"}},
        "accelerate_launch_args.fp8_override_linear_precision is 'x'. Give text such as 'false,false,false'.",
    ),
    (
        {"data_formatter_template": "{{text}}"},
        "Config keys 'dataset_text_field' ('text') and 'data_formatter_template' ('{{text}}') exclude each other. Keep one of them.",
    ),
    (
        {"dataset_text_field": WITHOUT, "response_template": "\n### Label:"},
        "Config key 'response_template' is '\\n### Label:' but no text is named to look in. Add dataset_text_field or data_formatter_template, or instruction_template for chat data.",
    ),
    (
        {"instruction_template": "### User:"},
        "Config key 'instruction_template' is '### User:' but response_template is missing. Add it: it says where an assistant turn starts.",
    ),
    (
        {"dataset_text_field": WITHOUT, "dataset_image_field": "image"},
        "Config key 'dataset_image_field' is 'image', and models are tuned on text only. Drop the key, and name a model and a data set of text.",
    ),
    (
        {"chat_template": "x", "chat_template_path": "/t.jinja"},
        "Config keys 'chat_template' and 'chat_template_path' exclude each other. Keep one of them.",
    ),
    (
        {"peft_method": "alora"},
        "Config key 'alora_invocation_string' is missing, and peft_method is 'alora'. Add the text that activates the adapter; every row must hold it.",
    ),
    (
        {"peft_method": "pt", "prompt_tuning_init_text": ""},
        "Config key 'prompt_tuning_init_text' is '', and prompt_tuning_init is 'TEXT'. Give a text, or set prompt_tuning_init to 'RANDOM'.",
    ),
    (
        {"bnb_qlora": ["nf4"]},
        "Config key 'bnb_qlora' is [\"nf4\"] but peft_method is 'none': a quantised base is frozen. Set peft_method to 'lora', or drop 'bnb_qlora'.",
    ),
    ({"bf16": True, "fp16": True}, "Config keys 'bf16' and 'fp16' are both true. Keep one of them."),
    (
        {"enable_reduce_loss_sum": True, "label_smoothing_factor": 0.1},
        "Config key 'enable_reduce_loss_sum' is true, and a summed loss has neither label_smoothing_factor nor another loss_type than 'nll'. Drop them, or 'enable_reduce_loss_sum'.",
    ),
    (
        {"output_dir": "/models/m/"},
        "Config key 'output_dir' is '/models/m/', the directory of the base model, which would be overwritten. Name another directory.",
    ),
    (
        {"trust_remote_code": True},
        "Config key 'trust_remote_code' is true: Python code that comes with the model would run in the pod. If you trust it, set allow_remote_code=True on the operator (SFT_ALLOW_REMOTE_CODE=true in the trainer's environment); else drop the key.",
    ),
    (
        {"model_init_kwargs": {"trust_remote_code": True}},
        "Config key 'model_init_kwargs.trust_remote_code' is true: Python code that comes with the model would run in the pod. If you trust it, set allow_remote_code=True on the operator (SFT_ALLOW_REMOTE_CODE=true in the trainer's environment); else drop the key.",
    ),
    (
        {"hub_token": "hf_" + "aaa" * 11},
        "Config key 'hub_token' holds what looks like a secret, and a config is printed in logs. Remove it and pass it from a Secret as the environment variable HF_TOKEN.",
    ),
    (
        {"mlflow_tracking_uri": "https://me:pw123@host/"},
        "Config key 'mlflow_tracking_uri' holds what looks like a secret, and a config is printed in logs. Remove it and pass it from a Secret as the environment variable MLFLOW_TRACKING_PASSWORD.",
    ),
    (
        {"model_init_kwargs": {"token": "abc"}},
        "Config key 'model_init_kwargs.token' holds what looks like a secret, and a config is printed in logs. Remove it and pass it from a Secret as the environment variable HF_TOKEN.",
    ),
    (
        {"run_name": "hf_" + "Ab1" * 12},
        "Config key 'run_name' holds what looks like a secret, and a config is printed in logs. Remove it and pass it from a Secret as an environment variable.",
    ),
    (
        {"accelerate_launch_args": 5},
        "Config key 'accelerate_launch_args' is 5. Give an object of accelerate's long flags, for example {\"main_process_port\": 1234}.",
    ),
    (
        {"accelerate_launch_args": {"q": True}},
        "accelerate_launch_args key 'q' is a short flag. Use the long name 'quiet'.",
    ),
    (
        {"accelerate_launch_args": {"m": True}},
        "accelerate_launch_args key 'm' is not allowed. It would run other code than the trainer. Remove it.",
    ),
    (
        {"accelerate_launch_args": {"num-processes": 2}},
        "accelerate_launch_args key 'num-processes' is not spelled as in JSON. Use 'num_processes'.",
    ),
    (
        {"accelerate_launch_args": {"--num_processes": 2}},
        "accelerate_launch_args key '--num_processes' is not spelled as in JSON. Use 'num_processes'.",
    ),
    (
        {"accelerate_launch_args": {"num_proceses": 2}},
        "Unknown accelerate_launch_args key 'num_proceses'. Did you mean 'num_processes'?",
    ),
    (
        {"accelerate_launch_args": {"learning_rate": 1}},
        "accelerate_launch_args key 'learning_rate' is no flag of accelerate. Put it one level up, into the config.",
    ),
    (
        {"accelerate_launch_args": {"module": True}},
        "accelerate_launch_args key 'module' is not allowed. It would run other code than the trainer. Remove it.",
    ),
    (
        {"accelerate_launch_args": {"env": ["A=b"]}},
        "accelerate_launch_args key 'env' is not allowed. It would change the environment of other machines. Set variables on the pod.",
    ),
    (
        {"accelerate_launch_args": {"training_script": "x.py"}},
        "accelerate_launch_args key 'training_script' is not allowed. It would run other code than the trainer. Remove it.",
    ),
    (
        {"accelerate_launch_args": {"num_processes": "two"}},
        "accelerate_launch_args.num_processes is 'two'. Give a whole number of at least 1.",
    ),
    (
        {"accelerate_launch_args": {"num_processes": 0}},
        "accelerate_launch_args.num_processes is 0. Give a whole number of at least 1.",
    ),
    (
        {"accelerate_launch_args": {"mixed_precision": "bf17"}},
        "accelerate_launch_args.mixed_precision is 'bf17'. Did you mean 'bf16'? It takes 'no', 'fp16', 'bf16' or 'fp8'.",
    ),
    (
        {"accelerate_launch_args": {"main_process_port": 99999}},
        "accelerate_launch_args.main_process_port is 99999. Give a whole number from 0 to 65535.",
    ),
    (
        {"accelerate_launch_args": {"quiet": "maybe"}},
        "accelerate_launch_args.quiet is 'maybe'. Give true or false.",
    ),
    (
        {"accelerate_launch_args": {"fsdp_offload_params": "perhaps"}},
        "accelerate_launch_args.fsdp_offload_params is 'perhaps'. Give 'true' or 'false'.",
    ),
    (
        {"accelerate_launch_args": {"fsdp_sharding_strategy": "FULL"}},
        "accelerate_launch_args.fsdp_sharding_strategy is 'FULL'. Give 'FULL_SHARD', 'SHARD_GRAD_OP', 'NO_SHARD', 'HYBRID_SHARD', 'HYBRID_SHARD_ZERO2', 1, 2, 3, 4 or 5.",
    ),
    ({"accelerate_launch_args": {"vm": "a"}}, "accelerate_launch_args.vm is 'a'. Give a list of texts."),
    (
        {"accelerate_launch_args": {"fsdp_version": 3}},
        "accelerate_launch_args.fsdp_version is 3. Give 1 or 2.",
    ),
    (
        {"accelerate_launch_args": {"foo": 1}},
        "Unknown accelerate_launch_args key 'foo'. Remove it; `sft-config schema accelerate_launch_args` lists them.",
    ),
    (
        {"accelerate_launch_args": {"num_processes": {"n": 2}}},
        'accelerate_launch_args.num_processes is {"n": 2}. Give a whole number of at least 1.',
    ),
    (
        {"accelerate_launch_args": {"aws_secret_access_key": "abc"}},
        "Config key 'accelerate_launch_args.aws_secret_access_key' holds what looks like a secret, and a config is printed in logs. Remove it and pass it from a Secret as the environment variable AWS_SECRET_ACCESS_KEY.",
    ),
]


@pytest.mark.parametrize(("changes", "sentence"), WRONG, ids=[sentence[:60] for _, sentence in WRONG])
def test_check_config_one_mistake_is_told_in_its_one_sentence(changes, sentence):
    assert check_config(with_changes(changes), allow_remote_code=False) == [sentence]


def test_check_config_many_mistakes_are_reported_together():
    mistakes = check_config(
        {"output_dir": 5, "learning_rte": 1, "r": "x", "accelerate_launch_args": {"q": True}}
    )
    assert [mistake.split(". ")[0] for mistake in mistakes] == [
        "Config key 'output_dir' is 5",
        "Unknown config key 'learning_rte'",
        "Config key 'r' is 'x'",
        "accelerate_launch_args key 'q' is a short flag",
        "Config key 'model_name_or_path' is missing",
        "Config key 'training_data_path' is missing",
    ]


def test_validate_config_wrong_raises_64_with_a_line_a_mistake():
    with pytest.raises(ConfigError) as raised:
        validate_config({**RIGHT, "learning_rte": 1, "packing": "maybe"})
    assert raised.value.exit_code == 64
    assert raised.value.reason.splitlines() == [
        "Unknown config key 'learning_rte'. Did you mean 'learning_rate'?",
        "Config key 'packing' is 'maybe'. Give true or false.",
    ]


@pytest.mark.parametrize("name", ["two_gpu_fsdp", "config_map", "kubeflow"])
def test_validate_config_seed_example_passes_unchanged(name):
    config = json.loads((CONFIGS / f"{name}.json").read_text())
    assert validate_config(config) == config


def test_validate_config_right_values_come_back_as_they_are():
    config = {
        **RIGHT,
        "response_template": "\n### Läbel: {{ x }}\n",
        "run_name": "[1]",
        "chat_template": "None",
        "target_modules": "1e-5",
        "peft_method": "lora",
        "accelerate_launch_args": {"main_process_port": 1234, "vm": ["a", "b"], "debug": False},
    }
    assert validate_config(config) == config


@pytest.mark.parametrize(
    ("key", "given_value", "value"),
    [
        ("learning_rate", "1e-5", 1e-5),
        ("learning_rate", " 2 ", 2),
        ("per_device_train_batch_size", "4", 4),
        ("per_device_train_batch_size", 4.0, 4),
        ("per_device_train_batch_size", "1e1", 10),
        ("packing", "True", True),
        ("packing", "no", False),
        ("bf16", "false", False),
        ("pad_to_multiple_of", "8", 8),
        ("pad_to_multiple_of", "auto", "auto"),
        ("init_lora_weights", "true", True),
        ("init_lora_weights", "pissa_niter_4", "pissa_niter_4"),
        ("resume_from_checkpoint", "False", False),
        ("resume_from_checkpoint", "/out/checkpoint-3", "/out/checkpoint-3"),
        ("peft_method", "None", "none"),
        ("max_length", None, None),
        ("layers_to_transform", ["1", 2], [1, 2]),
        ("trackers", ("clearml", "mlflow"), ["clearml", "mlflow"]),
    ],
)
def test_validate_config_value_of_a_template_or_yaml_is_coerced_by_the_schema(key, given_value, value):
    coerced = validate_config({**RIGHT, key: given_value})[key]
    assert coerced == value
    assert type(coerced) is type(value)


@pytest.mark.parametrize("text", ["nan", "inf", "1_000", "0x10", "1e999", "٣", "", "1,5", "1e99999"])
def test_check_config_text_that_is_no_plain_number_is_refused(text):
    assert check_config({**RIGHT, "learning_rate": text}) == [
        f"Config key 'learning_rate' is {text!r}. Give a number of at least 0, for example 5e-05."
    ]


@pytest.mark.parametrize(
    ("flag", "given_value", "value"),
    [
        ("fsdp_offload_params", True, "true"),
        ("fsdp_offload_params", "False", "false"),
        ("fsdp_version", "2", 2),
        ("num_processes", "2", 2),
        ("mixed_precision", False, None),
        ("quiet", "false", False),
        ("fsdp_sharding_strategy", "1", 1),
        ("gpu_ids", "0,1", "0,1"),
        ("monitor_interval", "0.5", 0.5),
    ],
)
def test_validate_config_flag_is_coerced_by_its_kind(flag, given_value, value):
    if value is None:
        assert check_config({**RIGHT, "accelerate_launch_args": {flag: given_value}})
        return
    config = validate_config({**RIGHT, "accelerate_launch_args": {flag: given_value}})
    assert config["accelerate_launch_args"][flag] == value


def test_check_config_extra_key_of_a_newer_image_passes_unread():
    config = {**RIGHT, "brand_new_key": {"a": [1]}}
    assert check_config(config) == [
        "Unknown config key 'brand_new_key'. Remove it; `sft-config schema` lists the keys."
    ]
    assert validate_config(config, ["brand_new_key"]) == config


def test_check_config_extra_key_does_not_unlock_a_known_one():
    assert check_config({**RIGHT, "learning_rate": "fast"}, ["learning_rate"])


def test_check_config_remote_code_is_the_leave_of_who_runs_the_pod(monkeypatch):
    config = {**RIGHT, "trust_remote_code": True}
    assert check_config(config, allow_remote_code=True) == []
    assert len(check_config(config)) == 1
    monkeypatch.setenv("SFT_ALLOW_REMOTE_CODE", "true")
    assert check_config(config) == []


def test_check_config_wrong_key_gets_no_second_sentence_from_a_rule():
    assert check_config({**RIGHT, "eval_strategy": "epoch", "validation_data_path": 5}) == [
        "Config key 'validation_data_path' is 5. Give text or null."
    ]


def test_check_config_lora_export_after_full_tuning_is_fine():
    assert check_config({**RIGHT, "lora_post_process_for_vllm": True}) == []


@pytest.mark.parametrize("config", [None, [], [{}], "text", 5, {1: 2}, {None: None}])
def test_check_config_anything_else_than_an_object_is_a_mistake(config):
    assert check_config(config)


def test_check_config_object_that_holds_itself_is_told():
    loop = {}
    loop["a"] = loop
    assert check_config({**RIGHT, "lr_scheduler_kwargs": loop}) == [
        "Config key 'lr_scheduler_kwargs' is nested too deeply. Give a flat value."
    ]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(sorted(config_keys())) | st.text(max_size=12) | st.integers()
FLAGS = st.dictionaries(
    st.sampled_from(sorted(launch_flags())) | st.text(max_size=8), JSON_VALUES, max_size=4
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(KEYS, JSON_VALUES, max_size=12), FLAGS)
def test_check_config_whatever_it_gets_never_raises(config, flags):
    examination = examine_config({**config, "accelerate_launch_args": flags})
    assert all(sentence.endswith((".", "?", "]", "}")) for sentence in examination.mistakes), (
        examination.mistakes
    )


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(KEYS.filter(lambda key: isinstance(key, str)), JSON_VALUES, max_size=6))
def test_validate_config_what_it_gives_is_right_and_stays_as_it_is(config):
    try:
        right = validate_config({**config, **RIGHT})
    except ConfigError:
        return
    assert validate_config(right) == right


def test_validation_is_imported_without_anything_heavy():
    code = (
        "import sys, airflow_provider_sft.contract.validation, airflow_provider_sft.contract.settings, "
        "airflow_provider_sft.cli as cli; cli.main(['schema', 'optim']); "
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'trainer', 'airflow', 'yaml', 'jsonschema'} & set(sys.modules); "
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
