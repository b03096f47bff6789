"""What data paths may name, and what is said of the others."""

from __future__ import annotations

import json
import os

import pytest

from airflow_provider_sft.contract.errors import (
    AccessDeniedError,
    ConfigError,
    DataError,
    NotFoundError,
    TransientError,
)
from tests.trainer.data.preparing import prepare
from trainer.data.files import digest_data, locate_data, locate_files

ROW = '{"text": "a"}\n'


def locate(*paths, roots=None):
    environ = {} if roots is None else {"SFT_ALLOWED_ROOTS": roots}
    return locate_files("training_data_path", [str(path) for path in paths], environ)


def make(directory, *names):
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(ROW)
    return directory


def test_directory_gives_its_data_files_in_order(tmp_path):
    make(
        tmp_path, "b.jsonl", "a.json", "sub/c.jsonl", "README.md", ".hidden.jsonl", "state.json", "notes.txt"
    )
    names = [path.relative_to(tmp_path).as_posix() for path in locate(tmp_path).files]
    assert names == ["a.json", "b.jsonl", "sub/c.jsonl"]


def test_directory_with_splits_in_its_names_gives_the_train_split(tmp_path):
    make(
        tmp_path,
        "data/train-00000-of-00002.jsonl",
        "data/train-00001-of-00002.jsonl",
        "data/test-00000-of-00001.jsonl",
    )
    assert [path.name[:11] for path in locate(tmp_path).files] == ["train-00000", "train-00001"]


def test_glob_and_several_paths_are_read_in_order(tmp_path):
    make(tmp_path, "x1.jsonl", "x2.jsonl", "y.jsonl")
    assert [path.name for path in locate(tmp_path / "y.jsonl", tmp_path / "x*.jsonl").files] == [
        "y.jsonl",
        "x1.jsonl",
        "x2.jsonl",
    ]


def test_hub_id_is_allowed_whatever_the_roots(tmp_path):
    assert locate("HuggingFaceH4/no_robots", roots=str(tmp_path)).hub_id == "HuggingFaceH4/no_robots"


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/x.jsonl",
        "http://x/y.json",
        "s3://bucket/x.jsonl",
        "file:///etc/passwd",
        "hf://datasets/x",
    ],
)
def test_url_is_refused(url):
    with pytest.raises(ConfigError, match="a URL. Download it to a volume"):
        locate(url)


def test_missing_path_is_not_found(tmp_path):
    with pytest.raises(NotFoundError, match=r"training_data_path is '.*gone.jsonl', and nothing is there"):
        locate(tmp_path / "gone.jsonl")
    with pytest.raises(NotFoundError, match="nothing is there"):
        locate(tmp_path / "*.jsonl")


def test_empty_file_is_named(tmp_path):
    (tmp_path / "x.jsonl").touch()
    with pytest.raises(DataError, match=r"x.jsonl \(training_data_path\) is empty"):
        locate(tmp_path / "x.jsonl")


def test_directory_without_data_is_named(tmp_path):
    make(tmp_path, "model.bin")
    with pytest.raises(DataError, match="is a directory without a data file. Put .jsonl, .json"):
        locate(tmp_path)


def test_unknown_suffix_names_the_known_ones(tmp_path):
    make(tmp_path, "x.pkl")
    with pytest.raises(DataError, match=r"ends in '.pkl'. Expected one of .jsonl, .json, .parquet"):
        locate(tmp_path / "x.pkl")


def test_builder_reads_any_suffix(tmp_path):
    make(tmp_path, "x.data")
    assert locate_files("key", [str(tmp_path / "x.data")], {}, kind="json").kind == "json"


def test_unreadable_file_is_access_denied(tmp_path, monkeypatch):
    make(tmp_path, "x.jsonl")
    monkeypatch.setattr(os, "access", lambda *_args, **_options: False)  # root may read everything
    with pytest.raises(AccessDeniedError, match="cannot be read by user"):
        locate(tmp_path / "x.jsonl")


def test_path_outside_the_allowed_roots_is_denied(tmp_path):
    make(tmp_path, "in/x.jsonl", "out/x.jsonl")
    roots = f"{tmp_path / 'in'}:/elsewhere"
    assert locate(tmp_path / "in/x.jsonl", roots=roots).files
    with pytest.raises(AccessDeniedError, match="outside SFT_ALLOWED_ROOTS="):
        locate(tmp_path / "out/x.jsonl", roots=roots)


@pytest.mark.parametrize("path", ["in/link.jsonl", "in/folder", "in/../out/x.jsonl"])
def test_symlink_and_dots_out_of_the_allowed_roots_are_denied(tmp_path, path):
    make(tmp_path, "in/x.jsonl", "out/x.jsonl")
    (tmp_path / "in/link.jsonl").symlink_to(tmp_path / "out/x.jsonl")
    (tmp_path / "in/folder").symlink_to(tmp_path / "out")
    with pytest.raises(AccessDeniedError, match="outside SFT_ALLOWED_ROOTS="):
        locate(tmp_path / path, roots=str(tmp_path / "in"))


def test_root_that_is_a_symlink_itself_allows_what_it_points_to(tmp_path):
    make(tmp_path, "real/x.jsonl")
    (tmp_path / "data").symlink_to(tmp_path / "real")
    assert locate(tmp_path / "data/x.jsonl", roots=str(tmp_path / "data")).files


@pytest.mark.parametrize(
    "key", ["chat_template_path", "data_config_path", "chat_template_path of a data_config"]
)
def test_file_beside_the_data_is_held_to_the_roots_too(tmp_path, bpe, key):
    make(tmp_path, "in/x.jsonl")
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    allowed, outside = tmp_path / "in", str(tmp_path / "t.jinja")
    config = {"training_data_path": str(allowed / "x.jsonl"), key: outside}
    if "data_config" in key:
        path = allowed / "d.json" if key.startswith("chat") else tmp_path / "d.json"
        content = {"datasets": [{"data_paths": [str(allowed / "x.jsonl")]}]}
        if key.startswith("chat"):
            content["dataprocessor"] = {"chat_template_path": outside}
        path.write_text(json.dumps(content))
        config = {"data_config_path": str(path)}
    with pytest.raises(AccessDeniedError, match="outside SFT_ALLOWED_ROOTS="):
        prepare(tmp_path, bpe, environ={"SFT_ALLOWED_ROOTS": str(allowed)}, **config)


def test_hub_that_cannot_be_reached_is_a_transient_failure(tmp_path, bpe, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        TransientError, match="is 'org/rows', which is no file here, and the Hub cannot be reached"
    ):
        prepare(tmp_path, bpe, training_data_path="org/rows")


def test_digest_is_of_the_content_and_not_of_the_name(tmp_path):
    make(tmp_path, "a.jsonl", "b.jsonl")
    digests = {
        digest_data(locate_data({"training_data_path": str(tmp_path / n)}, {}))
        for n in ("a.jsonl", "b.jsonl")
    }
    assert len(digests) == 1
    (tmp_path / "a.jsonl").write_text('{"text": "b"}\n')
    assert digest_data(locate_data({"training_data_path": str(tmp_path / "a.jsonl")}, {})) not in digests


def test_no_data_at_all_says_which_key_to_add():
    with pytest.raises(ConfigError, match="'training_data_path' is missing. Add it, for example"):
        locate_data({}, {})


def test_data_config_beside_paths_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="data_config_path and training_data_path are both set"):
        locate_data({"data_config_path": "x.yaml", "training_data_path": "y.jsonl"}, {})
