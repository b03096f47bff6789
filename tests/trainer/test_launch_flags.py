"""Each long flag of the installed accelerate, from a config to what accelerate's own parser reads."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from airflow_provider_sft.contract.schema import launch_flags
from airflow_provider_sft.contract.settings import resolve_config
from trainer.launch import to_flags

CONFIG = {"model_name_or_path": "org/m", "training_data_path": "/d.jsonl", "output_dir": "/o"}
FLAGS = sorted(name for name, prop in launch_flags().items() if "x-refused" not in prop)
SWITCHES = [name for name in FLAGS if launch_flags()[name]["x-kind"] in ("switch", "truthy")]


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    from accelerate.commands.launch import launch_command_parser

    return launch_command_parser()


def read_back(parser: argparse.ArgumentParser, name: str, value: Any) -> Any:
    """What accelerate has for the flag when a config gives it `value`."""
    settings = resolve_config({**CONFIG, "accelerate_launch_args": {name: value}})
    argv = to_flags(settings.values["accelerate_launch_args"])
    return getattr(parser.parse_args([*argv, "-m", "trainer.train"]), action_of(parser, name).dest)


def action_of(parser: argparse.ArgumentParser, name: str) -> argparse.Action:
    return next(action for action in parser._actions if f"--{name}" in action.option_strings)


def as_parsed(action: argparse.Action, value: Any) -> Any:
    """`value` on a command line, by the action's own word: a switch has a constant, the rest a type."""
    if action.nargs == 0:
        return action.const
    return value if isinstance(value, list) else (action.type or str)(str(value))


def sample(prop: dict) -> Any:
    """A value as a config may have it."""
    if prop["x-kind"] in ("switch", "truthy"):
        return True
    if "enum" in prop:
        return prop["enum"][-1]
    if prop["x-kind"] == "append":
        return ["a", "b c"]
    if "examples" in prop:
        return prop["examples"][0]
    return {"integer": 3, "number": 0.5}.get(prop["type"], "some text")


@pytest.mark.parametrize("name", FLAGS)
def test_flag_reaches_accelerate_with_its_value(parser, name):
    value = sample(launch_flags()[name])
    assert read_back(parser, name, value) == as_parsed(action_of(parser, name), value)


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("value", [False, "false"])
def test_switch_with_false_is_off(parser, name, value):
    """fms-hf-tuning turns it on."""
    assert read_back(parser, name, value) in (False, None)


@pytest.mark.parametrize("name", FLAGS)
def test_flag_with_null_is_as_if_not_there(parser, name):
    untouched = parser.parse_args(["-m", "trainer.train"])
    assert read_back(parser, name, None) == getattr(untouched, action_of(parser, name).dest)


def test_schema_has_every_long_flag_of_accelerate(parser):
    longs = {option[2:] for a in parser._actions for option in a.option_strings if option.startswith("--")}
    assert {name for name in longs if "-" not in name} <= launch_flags().keys()
