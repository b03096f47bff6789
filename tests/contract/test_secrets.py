"""Secrets are told by key name and known prefix, wherever they stand; what only looks like one passes."""

from __future__ import annotations

import json

import pytest

from airflow_provider_sft.contract.secrets import (
    find_secrets,
    find_url_secrets,
    holds_secret,
    mask_secrets,
    redact,
)
from airflow_provider_sft.contract.validation import check_config

RIGHT = {
    "model_name_or_path": "/models/m",
    "training_data_path": "/data/t.jsonl",
    "output_dir": "/out/run-1",
    "dataset_text_field": "text",
}
LETTERS = "AbCdEfGhIjKlMnOpQrStUvWxYz0123456789"
# Made up, in the forms that services give out; assembled so that no scanner takes this file for a leak.
SECRET_VALUES = [
    "hf_" + LETTERS[:34],
    "ghp_" + LETTERS,
    "github_pat_" + LETTERS,
    "glpat-" + LETTERS[:20],
    "sk-" + LETTERS,
    "sk-proj-" + LETTERS,
    "xoxb-" + LETTERS,
    "AKIA" + "ABCDEFGHIJKLMNOP",
    "AIza" + LETTERS[:35],
    "nvapi-" + LETTERS,
    "eyJ" + LETTERS + ".eyJ" + LETTERS + "." + LETTERS,
    "-----BEGIN RSA PRIVATE " + "KEY-----",
    "https://user:" + "hunter2@mlflow.example.com",
]


@pytest.mark.parametrize("value", SECRET_VALUES, ids=lambda value: value[:8])
@pytest.mark.parametrize("wrap", ["{}", "see {} there"])
def test_find_secrets_value_with_a_known_prefix_is_found_in_any_key(value, wrap):
    assert [secret.path for secret in find_secrets({"run_name": wrap.format(value)})] == ["run_name"]


@pytest.mark.parametrize(
    "key",
    [
        "hub_token",
        "HUB_TOKEN",
        "push_to_hub_token",
        "password",
        "db_password",
        "api_key",
        "aws_secret_key",
        "hub-token",
    ],
)
def test_find_secrets_key_with_a_secrets_name_is_found_whatever_it_holds(key):
    assert [secret.path for secret in find_secrets({key: "x"})] == [key]


def test_find_secrets_nested_ones_are_found_with_their_path():
    config = {
        "model_init_kwargs": {"token": "x"},
        "lr_scheduler_kwargs": {"a": [{"password": "x"}]},
        "exp_metadata": json.dumps({"api_key": "x"}),
    }
    assert [secret.path for secret in find_secrets(config)] == [
        "model_init_kwargs.token",
        "lr_scheduler_kwargs.a[0].password",
        "exp_metadata",
    ]


@pytest.mark.parametrize(
    "config",
    [
        {"eos_token": "</s>"},
        {"eos_token": "eos"},
        {"pad_token": "<|pad|>"},
        {"some_new_token": "<|im_end|>"},
        {"assistant_token": "[INST]"},
        {"hub_token": None},
        {"hub_token": ""},
        {"num_virtual_tokens": 8},
        {"alora_invocation_tokens": [1, 2]},
        {"model_name_or_path": "/data/hf_models/llama"},
        {"model_name_or_path": "/data/sk-learn-models-and-other-long-directory-names/v1"},
        {"output_dir": "/out/hf_abcdefghijklmnopqrstuvwxyz0123456789"},
        {"mlflow_tracking_uri": "https://mlflow.example.com:5000/a@b"},
        {"mlflow_tracking_uri": "postgresql://user@host/db"},
        {"mlflow_tracking_uri": "https://user:${PASSWORD}@host"},
        {"dataset_text_field": "password"},
        {"response_template": "token:"},
        {"lr_scheduler_kwargs": {"text_key": "a", "key": "b", "max_key": 3}},
        {"add_special_tokens": ["<secret>", "hf_token"]},
        {"run_name": LETTERS * 3},
        {"exp_metadata": '{"a": '},
    ],
    ids=str,
)
def test_find_secrets_what_only_looks_like_one_passes(config):
    assert find_secrets(config) == []


@pytest.mark.parametrize(
    ("config", "variable"),
    [
        ({"hub_token": "x"}, "the environment variable HF_TOKEN"),
        ({"model_init_kwargs": {"token": "x"}}, "the environment variable HF_TOKEN"),
        ({"clearml_secret": "x"}, "the environment variable CLEARML_API_SECRET_KEY"),
        ({"db_password": "x"}, "an environment variable"),
    ],
)
def test_secret_sentence_says_how_to_pass_it(config, variable):
    (secret,) = find_secrets(config)
    assert secret.sentence == (
        f"Config key {secret.path!r} holds what looks like a secret, and a config is printed in logs. "
        f"Remove it and pass it from a Secret as {variable}."
    )


@pytest.mark.parametrize("value", SECRET_VALUES, ids=lambda value: value[:8])
@pytest.mark.parametrize(
    "place",
    [
        lambda value: {"hub_token": value},
        lambda value: {"peft_method": value},
        lambda value: {"learning_rate": value},
        lambda value: {"brand_new": value},
        lambda value: {"accelerate_launch_args": value},
        lambda value: {"accelerate_launch_args": {"mixed_precision": value}},
        lambda value: {"trackers": [value]},
        lambda value: {"lr_scheduler_kwargs": {"a": {"b": value}}},
        lambda value: {value: 1},
        lambda value: {"accelerate_launch_args": {value: 1}},
    ],
)
def test_check_config_never_prints_a_secret(place, value):
    mistakes = check_config({**RIGHT, **place(value)})
    assert mistakes
    assert value[4:30] not in "\n".join(mistakes)


def test_check_config_list_instead_of_an_object_hides_secrets_too():
    assert check_config([SECRET_VALUES[0]]) == [
        "The config is (hidden). Give one JSON object of keys and values."
    ]


def test_redact_hides_secrets_and_leaves_the_rest():
    config = {
        "hub_token": "x",
        "eos_token": "</s>",
        "model_init_kwargs": {"token": "x", "a": [1, SECRET_VALUES[0]]},
        "lr": 1e-5,
    }
    assert redact(config) == {
        "hub_token": "***",
        "eos_token": "</s>",
        "model_init_kwargs": {"token": "***", "a": [1, "***"]},
        "lr": 1e-5,
    }


def test_holds_secret_endless_nesting_is_survived():
    loop = []
    loop.append(loop)
    assert not holds_secret(loop)
    assert redact(loop)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://h/a?token=CANARY&x=1", "https://h/a?token=***&x=1"),
        ("'https://h/a?sv=2020&sig=CAN%2FARY%3D'", "'https://h/a?sv=2020&sig=***'"),
        ("https://CANARY@h/a", "https://***@h/a"),
        ("mlflow at https://u:CANARY@h:5000/", "mlflow at https://***@h:5000/"),
        ("git+https://x-access-token:CAN@ARY@h/a", "git+https://***@h/a"),
        ("exceeded with url: /a?X-Amz-Signature=CANARY (", "exceeded with url: /a?X-Amz-Signature=*** ("),
        ("?AWSAccessKeyId=CANARY&Signature=CANARY#f", "?AWSAccessKeyId=***&Signature=***#f"),
        ("url=https%3A%2F%2Fh%3Ftoken%3DCANARY%26b%3D1", "url=https%3A%2F%2Fh%3Ftoken%3D***%26b%3D1"),
        ("Authorization: Bearer CANARY", "Authorization: Bearer ***"),
        ("-----BEGIN RSA PRIVATE " + "KEY-----\nCANARY\n", "***"),
    ],
)
def test_mask_secrets_what_grants_access_by_a_url_is_hidden_and_the_rest_is_shown(text, shown):
    assert mask_secrets(text) == shown


@pytest.mark.parametrize("value", SECRET_VALUES, ids=lambda value: value[:8])
def test_mask_secrets_known_prefixes_are_hidden_to_their_end(value):
    assert value[-6:] not in mask_secrets(f"see {value} there") or "@" in value
    assert value[8:20] not in mask_secrets(f"see {value} there")


@pytest.mark.parametrize(
    "text",
    [
        "https://h:8080/a@b?page=2&sort=asc",
        "/data/tokens/a.jsonl: the eos_token=</s>",
        "step 3: 4 tokens/s; key 'a' & key 'b'",
        "s3://bucket/prefix",
    ],
)
def test_mask_secrets_what_is_none_stays(text):
    assert mask_secrets(text) == text


def test_find_url_secrets_gives_what_a_config_would_show():
    config = {"training_data_path": ["https://TOKEN@h/x?sig=ABC&sv=1"], "output_dir": "/o"}
    assert list(find_url_secrets(config)) == ["TOKEN", "ABC"]
