"""The data_config file: what it may say, and each mistake as a sentence with its place."""

from __future__ import annotations

import json

import pytest
import yaml

from airflow_provider_sft.contract.errors import ConfigError, NotFoundError, SFTError
from trainer.data.data_config import read_data_config

GOOD = {
    "dataprocessor": {"type": "default", "sampling_stopping_strategy": "first_exhausted", "seed": 7},
    "datasets": [
        {
            "name": "a",
            "data_paths": ["/data/a.jsonl", "/data/b*.json"],
            "builder": "json",
            "sampling": 0.3,
            "split": {"train": 0.8, "validation": 0.2},
            "shuffle": False,
            "data_handlers": [{"name": "tokenize", "arguments": {"fn_kwargs": {"text_column_name": "t"}}}],
        },
        {"name": "b", "data_paths": ["org/dataset"], "sampling": 0.7, "dataset_split_name": "train_sft"},
    ],
}


def read(tmp_path, content, name="data.json", **values):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_data_config(path, values, {})


def with_dataset(**changes):
    return {"datasets": [{"data_paths": ["/x.jsonl"]} | changes]}


@pytest.mark.parametrize("name", ["data.json", "data.yaml", "data.yml"])
def test_every_key_is_read_from_yaml_and_json(tmp_path, name):
    content = json.dumps(GOOD) if name.endswith("json") else yaml.safe_dump(GOOD)
    plan = read(tmp_path, content, name)
    assert (plan.stopping_strategy, plan.seed, plan.streaming) == ("first_exhausted", 7, False)
    first, second = plan.datasets
    assert (first.train, first.validation, first.sampling, first.shuffle) == (0.8, 0.2, 0.3, False)
    assert first.handlers[0].name == "tokenize"
    assert (second.train, second.validation, second.split_name) == (1.0, 0.0, "train_sft")


def test_defaults_are_the_peers(tmp_path):
    plan = read(tmp_path, with_dataset())
    assert (plan.seed, plan.stopping_strategy, plan.streaming) == (42, "all_exhausted", False)
    assert plan.datasets[0].shuffle is True


def test_weights_that_sum_to_one_but_for_float_error_are_fine(tmp_path):
    datasets = [{"data_paths": ["/x.jsonl"], "sampling": weight} for weight in (0.1,) * 10]
    assert len(read(tmp_path, {"datasets": datasets}).datasets) == 10
    assert sum([0.1] * 10) != 1


MISTAKES = {
    "no datasets": ({"dataprocessor": {}}, r"datasets is missing. Expected a list"),
    "empty datasets": ({"datasets": []}, r"datasets is \[\]. Expected a list with at least one"),
    "unknown key": ({"datasts": []}, r"unknown key 'datasts'. Did you mean 'datasets'\?"),
    "unknown dataset key": (
        with_dataset(sampeling=1),
        r"datasets\[0\] has the unknown key 'sampeling'. Did you mean",
    ),
    "no paths": (
        {"datasets": [{"name": "a"}]},
        r"datasets\[0\].data_paths is missing. Expected a list of paths",
    ),
    "one path": (
        with_dataset(data_paths="/x"),
        r"datasets\[0\].data_paths is '/x'. Expected a list of paths",
    ),
    "weight too large": (
        with_dataset(sampling=2),
        r"datasets\[0\].sampling is 2. Expected a number from 0 to 1",
    ),
    "weight as text": (with_dataset(sampling="half"), r"sampling is 'half'. Expected a number"),
    "weights": (
        {"datasets": [{"data_paths": ["/x.jsonl"], "sampling": 0.5}] * 3},
        r"sampling weights add up to 1.5. Expected 1",
    ),
    "one weight": (
        {
            "datasets": [
                {"data_paths": ["/x.jsonl"], "sampling": 1},
                {"name": "b", "data_paths": ["/y.jsonl"]},
            ]
        },
        r"data set 'b' has no sampling weight, and others have",
    ),
    "split": (with_dataset(split={"train": 0.9, "validation": 0.2}), r"split adds up to 1.1"),
    "no split": (with_dataset(split={"train": 0}), r"split adds up to 0. Expected"),
    "split key": (
        with_dataset(split={"test": 1}),
        r"split has the unknown key 'test'. Expected one of train, valid",
    ),
    "nothing to train": (
        with_dataset(split={"validation": 1}),
        r"no data set is trained on. Give one a split",
    ),
    "strategy": (
        {"dataprocessor": {"sampling_stopping_strategy": "all"}, **with_dataset()},
        r"sampling_stopping_strategy is 'all'. Expected one of all_exhausted, first_exhausted|Did you mean",
    ),
    "seed": (
        {"dataprocessor": {"seed": "1"}, **with_dataset()},
        r"dataprocessor.seed is '1'. Expected a whole number",
    ),
    "streaming": (
        {"dataprocessor": {"streaming": "yes"}, **with_dataset()},
        r"dataprocessor.streaming is 'yes'. Expected true or false",
    ),
    "two templates": (
        {"dataprocessor": {"chat_template": "a", "chat_template_base64": "YQ=="}, **with_dataset()},
        r"has chat_template and chat_template_base64. Keep one",
    ),
    "no base64": (
        {"dataprocessor": {"chat_template_base64": "é"}, **with_dataset()},
        r"chat_template_base64 is no base64 of UTF-8 text",
    ),
    "mixing": (
        {"dataprocessor": {"type": "odm"}, **with_dataset()},
        r"type is 'odm'. Online data mixing is not",
    ),
    "builder": (with_dataset(builder="jsonl"), r"datasets\[0\].builder is 'jsonl'. Did you mean 'json'\?"),
    "handlers": (with_dataset(data_handlers={}), r"data_handlers is {}. Expected a list of handlers"),
    "nameless handler": (with_dataset(data_handlers=[{"arguments": {}}]), r"data_handlers\[0\] has no name"),
    "list": ("[]", r"is \[\]. Expected an object with dataprocessor, datasets"),
    "json": ('{"datasets": [}', r"data.json line 1: not JSON"),
}


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_mistake_is_named_with_its_place(tmp_path, mistake):
    content, sentence = MISTAKES[mistake]
    with pytest.raises(ConfigError, match=sentence):
        read(tmp_path, content)


def test_yaml_that_is_none_is_named(tmp_path):
    with pytest.raises(ConfigError, match="data.yaml is not YAML"):
        read(tmp_path, "a: [", "data.yaml")


def test_yaml_makes_no_objects(tmp_path):
    with pytest.raises(ConfigError, match="is not YAML"):
        read(tmp_path, "!!python/object/apply:os.system ['true']", "data.yaml")


def test_missing_file_is_not_found(tmp_path):
    with pytest.raises(NotFoundError, match="data_config_path is .*gone.yaml', and nothing is there"):
        read_data_config(tmp_path / "gone.yaml", {}, {})


@pytest.mark.parametrize(
    ("values", "changes", "sentence"),
    [
        ({}, {}, r"streams, and max_steps is None. Set it"),
        ({"max_steps": -1}, {}, r"streams, and max_steps is -1"),
        ({"max_steps": 5, "packing": True}, {}, r"streams, and packing is on. Drop one"),
        ({"max_steps": 5}, {"split": {"train": 0.5, "validation": 0.5}}, r"is split, and it streams"),
    ],
)
def test_stream_is_refused_what_it_cannot_do(tmp_path, values, changes, sentence):
    content = {"dataprocessor": {"streaming": True}, **with_dataset(**changes)}
    with pytest.raises(SFTError, match=sentence):
        read(tmp_path, content, **values)
