"""Every kind of file, and every way it can be broken: a sentence with the file and the line."""

from __future__ import annotations

import json
from collections import deque

import datasets
import pandas as pd
import pyarrow as pa
import pytest

from airflow_provider_sft.contract.errors import DataError, SFTError
from tests.trainer.data.preparing import prepare, trained_texts
from trainer.data.rows import read_chunks
from trainer.data.text_rows import TextRows, read_column

ROWS = [{"prompt": "été:", "completion": f" {number} 你好"} for number in range(3)]


def rows_of(path):
    return [row for chunk in read_chunks(path) for row in chunk.rows]


def places_of(path):
    return [
        chunk.where(index).split("/")[-1] for chunk in read_chunks(path) for index in range(len(chunk.rows))
    ]


def write_jsonl(path):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")


def write_arrow_file(path):
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


WRITERS = {
    "x.jsonl": write_jsonl,
    "lines.json": write_jsonl,
    "array.json": lambda path: path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8"),
    "bom.jsonl": lambda path: path.write_text(
        "\ufeff" + "".join(json.dumps(row) + "\r\n\r\n" for row in ROWS)
    ),
    "x.parquet": lambda path: pd.DataFrame(ROWS).to_parquet(path),
    "x.csv": lambda path: pd.DataFrame(ROWS).to_csv(path, index=False),
    "file.arrow": write_arrow_file,
}


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_rows_come_out_of_every_kind_of_file(tmp_path, bpe, name):
    WRITERS[name](tmp_path / name)
    assert rows_of(tmp_path / name) == ROWS
    prepared = prepare(tmp_path, bpe, training_data_path=str(tmp_path / name))
    assert trained_texts(prepared, bpe) == [row["completion"] + "</s>" for row in ROWS]


def test_arrow_stream_that_datasets_wrote_is_read(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert rows_of(next((tmp_path / "saved").glob("*.arrow"))) == ROWS


@pytest.mark.parametrize("suffix", [".txt", ".md"])
def test_text_gives_a_row_a_line(tmp_path, bpe, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_text("# one\n\n  two\u2028half\n", encoding="utf-8")
    assert rows_of(path) == [{"text": "# one"}, {"text": "  two\u2028half"}]
    assert places_of(path) == [f"{path.name} line 1", f"{path.name} line 3"]
    assert trained_texts(prepare(tmp_path, bpe, training_data_path=str(path)), bpe)[0] == "# one</s>"


def test_csv_field_over_several_lines_keeps_the_count(tmp_path):
    (tmp_path / "x.csv").write_text('text\n"a\nb"\nc\n')
    assert rows_of(tmp_path / "x.csv") == [{"text": "a\nb"}, {"text": "c"}]
    assert places_of(tmp_path / "x.csv") == ["x.csv line 2", "x.csv line 4"]


def test_row_of_an_array_is_named_by_the_line_it_starts_in(tmp_path):
    (tmp_path / "x.json").write_text('[\n{"text":\n"a"},\n\n{"text": "b"}]')
    assert places_of(tmp_path / "x.json") == ["x.json line 2", "x.json line 5"]


GOOD = '{"input": "a", "output": "b"}\n'
BROKEN = {
    "truncated.jsonl": (
        GOOD * 2 + '{"input": "a", "outp',
        r"truncated.jsonl line 3: not JSON \(Unterminated string",
    ),
    "cut.json": ('[{"input": "a", "output": "b"},\n{"input": "a"', r"cut.json line 2: not JSON"),
    "unclosed.json": (
        '[{"input": "a", "output": "b"}',
        r"unclosed.json line 1: not JSON, the array ends without '\]'",
    ),
    "list.jsonl": (GOOD + '["a", "b"]\n', r'list.jsonl line 2: a list, \["a", "b"\]. Expected an object'),
    "number.json": (f"[{GOOD.strip()},\n 17]", "number.json line 2: a number, 17. Expected an object"),
    "null.jsonl": (GOOD + "null\n", "null.jsonl line 2: null"),
    "column.jsonl": (
        GOOD + '{"input": "a"}\n',
        "column.jsonl line 2: 'output' is missing. The first row names it",
    ),
    "type.jsonl": (
        GOOD + '{"input": "a", "output": 3}\n',
        "type.jsonl line 2: 'output' is int 3. Expected a string",
    ),
    "none.jsonl": (
        GOOD + '{"input": null, "output": ""}\n',
        "none.jsonl line 2: 'input' is null. Expected a string",
    ),
    "fields.csv": ("input,output\na,b\na,b,c\n", "fields.csv line 3: 3 fields, and the header has 2"),
    "quote.csv": ('input,output\na,"b\n', r"quote.csv line 2: not CSV \(unexpected end of data\)"),
    "blank.jsonl": ("\n\n", "blank.jsonl.*holds no rows. Give at least one"),
    "header.csv": ("input,output\n", "header.csv.*holds no rows"),
    "columns.jsonl": (
        '{"a": "b"}\n',
        "No format fits the columns 'a'. Name the text with dataset_text_field",
    ),
    "messages.jsonl": (
        '{"messages": "[]"}\n',
        r"messages.jsonl line 1: 'messages' is str '\[\]'. Expected a list such as",
    ),
    "deep.jsonl": ("[" * 100_000, "deep.jsonl: nested too deep to be read"),
    "surrogate.jsonl": (
        GOOD + '{"input": "a", "output": "\\ud83d"}\n',
        "surrogate.jsonl line 2: half of a surrogate pair",
    ),
    "bytes.parquet": ("no parquet at all", "bytes.parquet is no whole Parquet file"),
    "bytes.arrow": ("no arrow at all", "bytes.arrow is no whole Arrow file"),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_broken_file_is_named_with_its_line(tmp_path, bpe, name):
    content, sentence = BROKEN[name]
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=sentence) as failure:
        prepare(tmp_path, bpe, training_data_path=str(tmp_path / name))
    assert failure.value.exit_code == 65


def test_text_that_is_not_utf8_is_named_with_its_line(tmp_path, bpe):
    (tmp_path / "latin.jsonl").write_bytes(GOOD.encode() * 3 + '{"input": "é"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match=r"latin.jsonl line 4 is not UTF-8"):
        prepare(tmp_path, bpe, training_data_path=str(tmp_path / "latin.jsonl"))


@pytest.mark.parametrize(
    ("path", "code"), [("gone.jsonl", 66), ("empty.jsonl", 65), ("folder", 65), ("https://x/y.jsonl", 64)]
)
def test_each_wrong_path_has_its_exit_code(tmp_path, bpe, path, code):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(SFTError) as failure:
        prepare(tmp_path, bpe, training_data_path=path if "://" in path else str(tmp_path / path))
    assert failure.value.exit_code == code


def test_wrong_type_in_line_1000003_is_found_and_named(tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text('{"t":"a"}\n' * 1_000_002 + '{"t":1}\n')
    row_format = TextRows(read_column("t", "dataset_text_field"), "", None, "")
    with pytest.raises(DataError, match="long.jsonl line 1000003: 't' is int 1. Expected a string"):
        deque((row_format.render(chunk) for chunk in read_chunks(path)), maxlen=0)
