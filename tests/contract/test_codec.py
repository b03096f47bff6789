"""The config arrives byte for byte, in any script; anything but one JSON object is refused with 64."""

from __future__ import annotations

import base64
import contextlib
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_sft.contract.codec import (
    decode_text,
    dump_config,
    encode_config,
    encode_text,
    parse_config,
    read_config,
    read_config_file,
)
from airflow_provider_sft.contract.errors import AccessDeniedError, ConfigError, NotFoundError
from airflow_provider_sft.contract.names import CONFIG_ENV_VAR, CONFIG_PATH_ENV_VAR, MAX_ENV_CONFIG_BYTES

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def read_encoded(data: bytes):
    return read_config({CONFIG_ENV_VAR: base64.b64encode(data).decode()})


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_encode_text_then_decode_text_is_the_identity(text):
    assert decode_text(encode_text(text)) == text


@given(st.dictionaries(st.text(), JSON_VALUES))
def test_encode_config_then_read_config_is_the_identity(config):
    assert read_config({CONFIG_ENV_VAR: encode_config(config)}) == config


@pytest.mark.parametrize(
    "text",
    ["\n### Läbel:", "输出", "العربية", "🎉", "trailing\n", "{{ x }}", "{# x #}", "{% x %}", "[1]", "None"],
)
def test_encode_config_text_in_any_script_arrives_identical(text):
    assert (
        read_config({CONFIG_ENV_VAR: encode_config({"response_template": text})})["response_template"] == text
    )


def test_encode_text_does_what_the_seed_function_does():
    json_text = '{"a": 1}'
    assert encode_text(json_text) == base64.b64encode(json_text.encode("ascii")).decode("ascii")


def test_decode_text_base64_broken_into_lines_is_taken():
    encoded = base64.encodebytes(json.dumps({"a": "b" * 200}).encode()).decode()
    assert "\n" in encoded.strip()
    assert json.loads(decode_text(encoded)) == {"a": "b" * 200}


@pytest.mark.parametrize(
    ("encoded", "why"),
    [
        ('{"a": 1}', "it is plain text"),
        ("eyJhIjogIn5_fiJ9-w==", "it holds '-' or '_', as url-safe base64 does"),
        ("abc", "it holds other characters, or was cut"),
        ("ünïcode", "it holds other characters, or was cut"),
        (base64.b64encode(pickle.dumps({"a": 1})).decode(), "the bytes inside are not UTF-8 (byte 1)"),
        (base64.b64encode('{"ä": 1}'.encode("utf-16")).decode(), "the bytes inside are not UTF-8 (byte 1)"),
        (base64.b64encode('{"ä": 1}'.encode("latin-1")).decode(), "the bytes inside are not UTF-8 (byte 3)"),
    ],
)
def test_decode_text_anything_but_base64_of_utf8_is_refused_with_the_reason(encoded, why):
    with pytest.raises(ConfigError) as raised:
        decode_text(encoded)
    assert raised.value.exit_code == 64
    assert raised.value.reason == (
        f"SFT_TRAINER_CONFIG_JSON_ENV_VAR is not base64 of UTF-8 JSON: {why}. "
        f"Encode it with `sft-config encode FILE`."
    )


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('the pickle ran')",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_read_config_pickle_is_refused_and_never_opened(protocol):
    with pytest.raises(ConfigError):
        read_encoded(pickle.dumps(Bomb(), protocol=protocol))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[]", "holds a JSON list. Give one JSON object of keys and values."),
        ('"text"', "holds a JSON string. Give one JSON object of keys and values."),
        ("null", "holds a JSON null. Give one JSON object of keys and values."),
        ("", "is not JSON: Expecting value at line 1, column 1. Correct it there."),
        (
            '{"a": 1,}',
            "is not JSON: Illegal trailing comma before end of object at line 1, column 8. Correct it there.",
        ),
        ('{"a": NaN}', ": NaN is no JSON number. Give a finite number."),
        ('{"a": -Infinity}', ": -Infinity is no JSON number. Give a finite number."),
        ('{"a": 1e999}', ": 1e999 is beyond what a number can hold. Give a finite number."),
        ('{"a": 1, "a": 1}', ": config key 'a' appears twice. Keep one of them."),
        ('{"b": {"a": 1, "a": 2}}', ": config key 'a' appears twice. Keep one of them."),
        ('{"a": ' + "[" * 100_000, "is nested too deeply. A config is one flat JSON object."),
    ],
)
def test_parse_config_anything_but_one_strict_object_is_refused(text, sentence):
    with pytest.raises(ConfigError) as raised:
        parse_config(text, source="config.json")
    said = raised.value.reason.removeprefix("config.json").lstrip(" ")
    if "trailing comma" in sentence:  # worded differently from Python 3.13 on
        assert "is not JSON" in said
    else:
        assert said == sentence.lstrip(" ")


@given(st.text())
def test_parse_config_any_text_gives_an_object_or_config_error(text):
    with contextlib.suppress(ConfigError):
        assert isinstance(parse_config(text), dict)


def test_parse_config_byte_order_mark_is_passed_over():
    assert parse_config("\ufeff{}") == {}


def test_read_config_variable_wins_over_the_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"from": "file"}')
    environ = {CONFIG_ENV_VAR: encode_text('{"from": "variable"}'), CONFIG_PATH_ENV_VAR: str(path)}
    assert read_config(environ) == {"from": "variable"}
    assert read_config({CONFIG_PATH_ENV_VAR: str(path)}) == {"from": "file"}


def test_read_config_neither_is_set_says_what_to_set():
    with pytest.raises(ConfigError, match="Neither .*ENV_VAR nor .*PATH is set. Set one of them"):
        read_config({})


def test_read_config_file_missing_is_66(tmp_path):
    with pytest.raises(NotFoundError, match="does not exist. Mount the config there") as raised:
        read_config_file(tmp_path / "none.json")
    assert raised.value.exit_code == 66


def test_read_config_file_directory_is_64(tmp_path):
    with pytest.raises(ConfigError, match="is a directory. Name the JSON file in it"):
        read_config_file(tmp_path)


def test_read_config_file_not_utf8_is_64(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes('{"ä": 1}'.encode("latin-1"))
    with pytest.raises(ConfigError, match="is not UTF-8 .*Save it as UTF-8"):
        read_config_file(path)


def test_read_config_file_unreadable_is_77(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text("{}")
    path.chmod(0)
    try:
        path.read_bytes()
    except PermissionError:
        with pytest.raises(AccessDeniedError, match="cannot be read by this user"):
            read_config_file(path)
    else:
        pytest.skip("this user reads every file")


def test_encode_config_largest_config_fits_linux_limit_and_one_more_byte_does_not():
    filler = "a" * (MAX_ENV_CONFIG_BYTES - len('{"a": ""}'))
    text = dump_config({"a": filler})
    assert len(text) == MAX_ENV_CONFIG_BYTES
    limit = 131_072 - 1  # the string's final NUL counts
    assert len(f"{CONFIG_ENV_VAR}={encode_text(text)}") <= limit
    assert len(f"{CONFIG_ENV_VAR}={encode_text(text + 'a')}") > limit


def test_encode_config_nan_is_no_json():
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_config({"a": float("nan")})
