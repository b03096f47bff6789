"""The shipped schema has every key that the installed releases take."""

from __future__ import annotations

import dataclasses

import pytest
from peft import LoraConfig
from transformers import TrainingArguments
from trl import SFTConfig

from airflow_provider_sft.contract.schema import config_keys
from airflow_provider_sft.contract.settings import resolve_config

BASE = {"model_name_or_path": "org/m", "training_data_path": "/d.jsonl", "output_dir": "/o"}


@pytest.mark.parametrize("upstream", [SFTConfig, TrainingArguments, LoraConfig])
def test_every_field_of_upstreams_config_is_a_key(upstream):
    assert {field.name for field in dataclasses.fields(upstream)} <= config_keys().keys()


@pytest.mark.parametrize(("section", "upstream"), [("training", SFTConfig), ("peft", LoraConfig)])
def test_default_that_is_not_said_to_differ_is_upstreams(section, upstream):
    """Unset, a key means what the library means by it, unless the schema names the library's default beside ours."""
    settings = resolve_config(BASE)
    differing = {
        field.name: (settings.values[field.name], default_of(field))
        for field in dataclasses.fields(upstream)
        if config_keys()[field.name].get("x-section") == section
        and "x-upstream-default" not in config_keys()[field.name]
        and settings.values.get(field.name) is not None
        and field.name not in settings.given
        and settings.values[field.name] != default_of(field)
    }
    assert differing == {}


def default_of(field: dataclasses.Field) -> object:
    default = field.default_factory() if callable(field.default_factory) else field.default
    return getattr(default, "value", default)
