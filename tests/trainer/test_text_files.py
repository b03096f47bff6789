"""YAML and JSON files that a config names: whatever they hold, 64 or 66 in one sentence with key and file."""

from __future__ import annotations

import pytest

from airflow_provider_sft.contract.errors import ConfigError
from trainer.controller.file import read_controller_plan
from trainer.data.data_config import read_data_config
from trainer.launch import plan_launch

BROKEN = {
    "not UTF-8": b"a: \xff\xfe",
    "UTF-16": "a: b".encode("utf-16"),
    "NULs": bytes(40),
    "nested deeply": b"[" * 5000,
    "a list as a key": b"? [1, 2]\n: x\n",
    "a mapping as a key": b"? {a: 1}\n: x\n",
    "a date that is none": b"a: 2001-99-99\n",
    "an unknown tag": b"a: !!python/object/apply:os.system [ls]\n",
    "an unknown alias": b"a: *b\n",
    "a broken line": b"password: S3CRET\n  - x: [\n",
    "a list": b"- 1\n",
    "a number": b"1\n",
    "nothing": b"",
}


def read_controller(path):
    read_controller_plan(path, evaluates=False)


def read_data(path):
    read_data_config(path, {"training_data_path": None}, {})


def read_launch(path):
    plan_launch({"config_file": str(path)}, {}, gpus=0, scratch_dir=path.parent)


@pytest.mark.parametrize("read", [read_controller, read_data, read_launch])
@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_broken_file_is_one_sentence_with_its_name_and_none_of_its_text(tmp_path, read, content):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.yaml") as raised:
        read(path)
    assert "S3CRET" not in raised.value.reason
    assert "Traceback" not in raised.value.reason


def test_data_config_in_json_that_is_nested_deeply_is_one_sentence(tmp_path):
    path = tmp_path / "data.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ConfigError, match=r"data\.json is nested too deeply"):
        read_data(path)


@pytest.mark.parametrize(
    "line",
    ["num_processes: two", "num_processes: [2]", "num_machines: 1.5", "dynamo_config: x", "fsdp_config: [1]", "distributed_type: 7"],
)  # fmt: skip
def test_accelerate_config_file_with_a_value_of_another_type_is_64_with_key_and_value(tmp_path, line):
    path = tmp_path / "accelerate.yaml"
    path.write_text(f"{line}\n")
    with pytest.raises(ConfigError, match=rf"accelerate\.yaml.*'{line.split(':')[0]}' is "):
        read_launch(path)
