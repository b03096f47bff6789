"""The paths of a config: none is forgotten, and what no disk can have is refused before one is seen."""

from __future__ import annotations

import re

import pytest

from airflow_provider_sft.contract.paths import named_paths
from airflow_provider_sft.contract.schema import config_keys, launch_flags
from airflow_provider_sft.contract.validation import check_config

BASE = {"model_name_or_path": "/models/m", "output_dir": "/out", "training_data_path": "/data/x.jsonl"}
TELLS_OF_A_PATH = re.compile(
    r"(^|_)(path|dir|directory|file|filename|folder|hostfile|repo|uri|checkpoint)(_|$)"
)
# Keys that read like paths, and why they are none.
NOT_PATHS = {
    "training_logs_filename": "a name in output_dir, with a rule of its own",
    "scanner_output_filename": "ignored",
    "hub_model_id": "a name on the Hub",
    "push_to_hub_model_id": "a name on the Hub",
    "aim_url": "a server",
    "save_total_limit": "a number",
}


def keys_that_read_like_paths(properties):
    for name, prop in properties.items():
        types = {kind for part in prop.get("anyOf", [prop]) for kind in _types(part)}
        says = re.search(r"\bpath to\b|[Dd]irectory|config file\b", prop.get("description", ""))
        if "string" in types and "enum" not in prop and (TELLS_OF_A_PATH.search(name) or says):
            yield name


def _types(part):
    kind = part.get("type", [])
    return [kind] if isinstance(kind, str) else kind


def test_every_key_that_reads_like_a_path_says_whether_it_is_read_or_written():
    keys = {
        name: prop
        for name, prop in config_keys().items()
        if "x-gone" not in prop and "x-moved-to" not in prop
    }
    flags = {name: prop for name, prop in launch_flags().items() if "x-refused" not in prop}
    found = [*keys_that_read_like_paths(keys), *keys_that_read_like_paths(flags)]
    assert len(found) > 20
    unmarked = [name for name in found if "x-path" not in {**keys, **flags}[name] and name not in NOT_PATHS]
    assert unmarked == []


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"accelerate_launch_args": {"config_file": "/a/b.yaml"}}, "accelerate_launch_args.config_file"),
        ({"model_init_kwargs": {"cache_dir": "/a"}}, "model_init_kwargs.cache_dir"),
        ({"model_init_kwargs": '{"offload_folder": "/a"}'}, "model_init_kwargs.offload_folder"),
        ({"deepspeed": {"zero": {"offload": {"nvme_path": "/a"}}}}, "deepspeed.zero.offload.nvme_path"),
        ({"fsdp_config": "/a/fsdp.json"}, "fsdp_config"),
        ({"corda_config": {"cache_file": "a/cache"}}, "corda_config.cache_file"),
        ({"mlflow_tracking_uri": "file:/a/b"}, "mlflow_tracking_uri"),
        ({"mlflow_tracking_uri": "sqlite:////a/b.db"}, "mlflow_tracking_uri"),
        ({"resume_from_checkpoint": "/a/checkpoint-1"}, "resume_from_checkpoint"),
    ],
)
def test_nested_paths_and_addresses_of_files_are_found(config, key):
    assert key in [path.key for path in named_paths({**BASE, **config})]


@pytest.mark.parametrize(
    "config",
    [
        {"mlflow_tracking_uri": "http://mlflow:5000"},
        {"mlflow_tracking_uri": "databricks://profile"},
        {"aim_repo": "aim://host:1"},
        {"resume_from_checkpoint": "true"},
        {"model_init_kwargs": {"attn_implementation": "org/kernel"}},
        {"exp_metadata": {"note": "/not/a/path"}},
        {"response_template": "/answer:"},
    ],
)
def test_what_is_not_a_place_on_this_disk_is_no_path(config):
    assert [path.key for path in named_paths({**BASE, **config})] == list(BASE)


@pytest.mark.parametrize("key", [name for name, prop in config_keys().items() if "x-path" in prop])
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is '', which is not a path"),
        ("  ", "is '  ', which is not a path"),
        ("/a\0b", "holds a NUL character"),
        ("/" + "a/" * 2048, "is a path of 4097 bytes"),
        ("/data/" + "é" * 128, "with a name of 256 bytes in it"),
    ],
)
def test_path_that_no_disk_can_have_is_refused_by_key(key, text, sentence):
    mistakes = check_config({**BASE, key: text})
    assert any(f"'{key}'" in mistake and sentence in mistake for mistake in mistakes)


@pytest.mark.parametrize("key", ["output_dir", "save_model_dir", "prepared_data_dir", "logging_dir"])
@pytest.mark.parametrize("text", ["/", "//", "/a/..", "/./"])
def test_writing_into_the_root_directory_is_refused(key, text):
    assert any("the root directory" in mistake for mistake in check_config({**BASE, key: text}))


@pytest.mark.parametrize("text", ["/models/m", "/models/m/.", "//models/m", "/models//m/", "/models/m/../m"])
@pytest.mark.parametrize("key", ["output_dir", "save_model_dir", "prepared_data_dir"])
def test_writing_over_the_base_model_is_refused_however_it_is_spelled(key, text):
    assert any("the directory of the base model" in mistake for mistake in check_config({**BASE, key: text}))


@pytest.mark.parametrize("text", ["../outside", "/abs", "a/../../b", "~/x"])
@pytest.mark.parametrize("name", ["subfolder", "gguf_file"])
def test_name_that_leaves_the_models_directory_is_refused(name, text):
    (mistake,) = check_config({**BASE, "model_init_kwargs": {name: text}})
    assert f"'model_init_kwargs.{name}' is {text!r}. Give a name inside the model's directory" in mistake


@pytest.mark.parametrize(
    "name",
    ["..", "", "a/b", ".complete", ".sft.lock.json", "adapter_config.json", "attempts.jsonl", "config.json",
     "tokenizer.json", "model.safetensors", "report.html", "result.json"],
)  # fmt: skip
def test_log_under_a_name_that_the_run_needs_is_refused(name):
    (mistake,) = check_config({**BASE, "training_logs_filename": name})
    assert f"'training_logs_filename' is {name!r}" in mistake


def test_log_under_another_name_is_taken():
    assert check_config({**BASE, "training_logs_filename": "curve.jsonl"}) == []


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"training_data_path": "s3://bucket/rows.jsonl"}, "a URL. Download it to a volume"),
        ({"validation_data_path": "https://host/rows.jsonl"}, "a URL. Download it to a volume"),
        ({"dataset_text_field": "text", "dataset_image_field": "image"}, "models are tuned on text only"),
        ({"trackers": ["aim"]}, "'aim_repo' is missing"),
        ({"report_to": ["wand"]}, "Did you mean 'wandb'?"),
        ({"exp_metadata": "[1]"}, "which is no JSON object"),
    ],
)
def test_what_the_run_would_refuse_is_refused_before_a_pod_exists(config, sentence):
    (mistake,) = check_config({**BASE, **config})
    assert sentence in mistake
