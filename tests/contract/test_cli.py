"""`sft-config`, started as people start it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFIGS = Path(__file__).parent / "configs"
SFT_CONFIG = Path(sys.executable).with_name("sft-config")


def run(*arguments, stdin=b"", **env):
    return subprocess.run(
        [SFT_CONFIG, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        check=False,
        env={**os.environ, "COLUMNS": "100", **env},
    )


def test_validate_right_config_says_so_and_ends_0():
    path = CONFIGS / "kubeflow.json"
    done = run("validate", path)
    assert done.returncode == 0
    assert done.stdout.decode() == f"{path}: the config is right.\n"
    assert done.stderr.decode() == (
        'note: Config key \'use_flash_attn\' is now written "attn_implementation": "sdpa".\n'
    )


def test_validate_wrong_config_names_every_mistake_on_stderr_and_ends_64():
    done = run("validate", "-", stdin=b'{"output_dir": "/o", "learning_rte": 1, "r": "x"}')
    assert done.returncode == 64
    assert done.stdout == b""
    assert done.stderr.decode().splitlines() == [
        "Unknown config key 'learning_rte'. Did you mean 'learning_rate'?",
        "Config key 'r' is 'x'. Give a whole number of at least 1, for example 8.",
        (
            "Config key 'model_name_or_path' is missing. Add it, for example "
            '"model_name_or_path": "/data/models/granite-3.1-2b".'
        ),
        (
            "Config key 'training_data_path' is missing. Add it, for example "
            '"training_data_path": "/data/input/train.jsonl", or describe the data in a data_config_path.'
        ),
    ]


@pytest.mark.parametrize(
    ("stdin", "sentence"),
    [
        (
            b"{",
            "Standard input is not JSON: Expecting property name enclosed in double quotes at line 1, column 2. ",
        ),
        (b"\xff\xfe{", "Standard input is not UTF-8 (byte 1). Send UTF-8."),
        (b"[]", "Standard input holds a JSON list. Give one JSON object of keys and values."),
        (b'{"a": NaN}', "Standard input: NaN is no JSON number. Give a finite number."),
    ],
)
def test_validate_what_is_no_json_object_is_one_sentence_and_64(stdin, sentence):
    done = run("validate", "-", stdin=stdin)
    assert done.returncode == 64
    assert done.stderr.decode().startswith(sentence)
    assert done.stderr.count(b"\n") == 1


def test_validate_missing_file_ends_66(tmp_path):
    done = run("validate", tmp_path / "none.json")
    assert done.returncode == 66
    assert done.stderr.decode() == (
        f"{tmp_path}/none.json does not exist. Mount the config there, or correct the path.\n"
    )


def test_validate_extra_key_and_remote_code_are_options():
    config = {
        **json.loads((CONFIGS / "config_map.json").read_text()),
        "brand_new": 1,
        "trust_remote_code": True,
    }
    stdin = json.dumps(config).encode()
    assert run("validate", "-", stdin=stdin).returncode == 64
    assert (
        run("validate", "-", "--extra-key", "brand_new", "--allow-remote-code", stdin=stdin).returncode == 0
    )
    allowed = run("validate", "-", "--extra-key", "brand_new", stdin=stdin, SFT_ALLOW_REMOTE_CODE="true")
    assert allowed.returncode == 0


def test_encode_file_in_any_script_decodes_to_the_same_bytes(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes('{"response_template": "\\n### Läbel 输出 🎉:",\n "a": "{{ x }}\\n"}\n'.encode())
    encoded = run("encode", path)
    assert encoded.returncode == 0
    assert base64.b64decode(encoded.stdout) == path.read_bytes()
    assert run("decode", encoded.stdout.decode().strip()).stdout == path.read_bytes()
    assert run("decode", "-", stdin=encoded.stdout).stdout == path.read_bytes()


def test_encode_what_is_no_json_is_refused():
    done = run("encode", "-", stdin=b"model: x")
    assert done.returncode == 64
    assert done.stdout == b""


def test_encode_config_too_long_for_a_variable_says_what_to_do():
    done = run("encode", "-", stdin=json.dumps({"a": "b" * 98_277}).encode())
    assert done.returncode == 0
    assert done.stderr.decode() == (
        "note: 98,286 bytes are more than the 98,277 that fit into an environment variable. "
        "Mount the file and set SFT_TRAINER_CONFIG_JSON_PATH to its path.\n"
    )


def test_decode_garbage_ends_64():
    done = run("decode", "{}")
    assert done.returncode == 64
    assert done.stderr.decode() == (
        "SFT_TRAINER_CONFIG_JSON_ENV_VAR is not base64 of UTF-8 JSON: it is plain text. "
        "Encode it with `sft-config encode FILE`.\n"
    )


def test_schema_prints_json_schema_or_one_key():
    assert json.loads(run("schema").stdout)["required"] == ["model_name_or_path", "output_dir"]
    assert run("schema", "r").stdout.decode().splitlines()[0] == "r"
    assert run("schema", "rr").returncode == 64


def test_schema_into_a_closed_pipe_is_quiet():
    done = subprocess.run(f"{SFT_CONFIG} schema | head -c 1", shell=True, capture_output=True, check=False)
    assert done.stdout == b"{"
    assert done.stderr == b""


def test_help_has_examples_and_exit_codes():
    text = run("--help").stdout.decode()
    for part in (
        "validate",
        "encode",
        "decode",
        "schema",
        "examples:",
        "sft-config validate config.json",
        "64",
    ):
        assert part in text
    assert run().returncode == 2
