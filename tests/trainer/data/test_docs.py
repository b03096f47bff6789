"""docs/data.md does what it says: each example is prepared, and trains what its last block marks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.trainer.data.preparing import prepare
from trainer.data.data_config import read_data_config
from trainer.data.handler_arguments import read_arguments
from trainer.data.telling import mark_trained

DOCS = Path(__file__).parents[3] / "docs" / "data.md"
_BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def examples():
    """Rows, the keys that go with them, and how the first row is shown; a later row block starts another example."""
    formats = DOCS.read_text().split("## Several data sets")[0]
    found = []
    for kind, text in _BLOCK.findall(formats):
        if kind == "jsonl":
            found.append(
                {"rows": [json.loads(line) for line in text.splitlines()], "keys": {}, "shown": None}
            )
        elif kind == "json":
            found[-1]["keys"] = json.loads(text)
        else:
            found[-1]["shown"] = text
    return found


@pytest.mark.parametrize("example", examples(), ids=lambda example: "-".join(example["rows"][0]))
def test_example_trains_what_the_page_marks(tmp_path, bpe, example):
    prepared = prepare(tmp_path, bpe, example["rows"], **example["keys"])
    if example["shown"] is not None:
        assert mark_trained(prepared.statistics["samples"][0]) == example["shown"].removesuffix("\n")


def test_page_has_an_example_of_every_format():
    assert len(examples()) == 8


def test_data_config_of_the_page_is_right(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text(next(text for kind, text in _BLOCK.findall(DOCS.read_text()) if kind == "yaml"))
    plan = read_data_config(path, {}, {})
    assert [spec.name for spec in plan.datasets] == ["complaints", "chats"]
    assert read_arguments(plan.datasets[0].handlers[0]).get("input_column_name") == "text"
