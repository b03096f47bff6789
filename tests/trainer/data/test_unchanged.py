"""Rows are trained from the files that the parent has digested, and from no others."""

from __future__ import annotations

import json

import pytest
import yaml

from airflow_provider_sft.contract.errors import NotFoundError
from airflow_provider_sft.contract.settings import resolve_config
from tests.trainer.data.preparing import model_config, write_rows
from trainer.data.files import locate_data
from trainer.data.prepare import prepare_data
from trainer.data.rows import read_source
from trainer.digests import Digests

ROWS = [{"text": f"row {number}"} for number in range(5000)]


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path / "rows.jsonl", ROWS)


def settings_of(tmp_path, **keys):
    keys = {"model_name_or_path": str(model_config(tmp_path)), "output_dir": str(tmp_path / "out"), **keys}
    return resolve_config({"dataset_text_field": "text", **keys})


def digest(settings):
    digests = Digests()
    located = locate_data(settings.values, {}, digests)
    assert [source.sha256 for source in located.sources]
    return Digests(json.loads(json.dumps(digests.as_json())))


def prepare(settings, bpe, digests):
    return prepare_data(settings, bpe, digests=digests, say=print, beat=lambda: None, environ={})


@pytest.mark.parametrize("prepared", [None, "shared"])
def test_rows_replaced_after_the_digest_are_not_prepared(rows, bpe, tmp_path, prepared):
    keys = {"prepared_data_dir": str(tmp_path / prepared)} if prepared else {}
    settings = settings_of(tmp_path, training_data_path=str(rows), **keys)
    digests = digest(settings)
    rows.write_text(rows.read_text().replace("row", "wor"))
    with pytest.raises(NotFoundError, match=r"rows.jsonl has changed since this attempt began"):
        prepare(settings, bpe, digests)
    assert not list((tmp_path / "out").glob("**/*.arrow"))


def test_file_that_appeared_after_the_digest_is_refused(rows, bpe, tmp_path):
    directory = tmp_path / "data"
    directory.mkdir()
    rows.rename(directory / "a.jsonl")
    settings = settings_of(tmp_path, training_data_path=str(directory))
    digests = digest(settings)
    write_rows(directory / "b.jsonl", ROWS[:1])
    with pytest.raises(NotFoundError, match=r"b.jsonl has changed since this attempt began"):
        prepare(settings, bpe, digests)


def test_rows_replaced_while_they_are_read_end_the_reading(rows, tmp_path):
    located = locate_data({"training_data_path": str(rows)}, {}, Digests())
    assert located.sources[0].sha256
    chunks = read_source(located.sources[0])
    next(chunks)
    rows.write_text("[")
    with pytest.raises(NotFoundError, match="has changed since this attempt began"):
        list(chunks)


def test_stream_of_a_file_that_was_replaced_ends(rows, bpe, tmp_path):
    spec = {"datasets": [{"name": "a", "data_paths": [str(rows)]}], "dataprocessor": {"streaming": True}}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(spec))
    settings = settings_of(tmp_path, data_config_path=str(tmp_path / "data.yaml"), max_steps=4)
    stream = iter(prepare(settings, bpe, digest(settings)).train)
    next(stream)
    rows.write_text(rows.read_text().replace("row", "wor"))
    with pytest.raises(NotFoundError, match="has changed since this attempt began"):
        list(stream)


def test_corrected_label_of_the_same_length_is_prepared_anew_in_prepared_data_dir(rows, bpe, tmp_path):
    settings = settings_of(tmp_path, training_data_path=str(rows), prepared_data_dir=str(tmp_path / "shared"))
    before = prepare(settings, bpe, digest(settings)).train[0]["input_ids"].tolist()
    rows.write_text(rows.read_text().replace("row 0", "wor 0", 1))
    assert prepare(settings, bpe, digest(settings)).train[0]["input_ids"].tolist() != before
