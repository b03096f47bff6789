"""Rows out of files, with the line each came from: JSON, JSON lines, CSV, text, Parquet, Arrow.

Every sentence of a failure names file and line. Lines and rows count from 1.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from airflow_provider_sft.contract.errors import AccessDeniedError, DataError, TransientError
from trainer.data.files import KINDS

CHUNK_ROWS = 2048
_READ_CHARS = 1 << 22
_CSV_FIELD_CHARS = 1 << 30
_WHITESPACE = re.compile(r"[ \t\n\r]*")

Row = dict[str, Any]


@dataclass(frozen=True)
class RowChunk:
    """Rows of one file, and the line (text files) or row (Parquet, Arrow) each stands in."""

    path: str
    rows: list[Row]
    numbers: Sequence[int]
    unit: str = "line"

    def where(self, index: int) -> str:
        return f"{self.path} {self.unit} {self.numbers[index]}"

    def part(self, start: int, end: int) -> RowChunk:
        return RowChunk(self.path, self.rows[start:end], self.numbers[start:end], self.unit)


def read_chunks(path: Path) -> Iterator[RowChunk]:
    """The rows of `path`, in order, `CHUNK_ROWS` at a time.

    :raises DataError: not what its suffix says, with the line
    """
    kind = KINDS[path.suffix]
    reader: Callable[[Path], Iterator[RowChunk]] = _TABLE_READERS.get(kind) or _read_text_file
    try:
        yield from reader(path)
    except PermissionError as error:
        raise AccessDeniedError(
            f"{path} cannot be read ({error.strerror}). Give the pod's user the right to read it."
        ) from error
    except OSError as error:
        raise TransientError(f"{path} could not be read to its end ({error}).") from error


def _read_text_file(path: Path) -> Iterator[RowChunk]:
    kind = KINDS[path.suffix]
    try:
        with path.open(encoding="utf-8-sig", newline="" if kind == "csv" else None) as file:
            if kind == "json":
                yield from _read_json(path, file)
            else:
                yield from _chunks(str(path), _csv_rows(path, file) if kind == "csv" else _text_rows(file))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} line {_undecodable_line(path)} is not UTF-8 ({error.reason}). Save the file as UTF-8."
        ) from error


def _read_json(path: Path, file: TextIO) -> Iterator[RowChunk]:
    head = file.read(_READ_CHARS)
    first = head.lstrip()[:1]
    if first == "[":
        yield from _chunks(str(path), _array_rows(path, file, head))
        return
    first_line = head.lstrip().split("\n", 1)[0]
    if _is_json(first_line) or len(head) == _READ_CHARS:
        file.seek(0)
        yield from _line_chunks(path, file)
    else:
        yield from _chunks(str(path), iter([(1, _whole_object(path, head))]))


def _line_chunks(path: Path, file: TextIO) -> Iterator[RowChunk]:
    """JSON lines. Blank lines count and are left out."""
    loads, rows, numbers, number = json.loads, list[Row](), list[int](), 0
    for number, line in enumerate(file, 1):
        try:
            row = loads(line)
        except json.JSONDecodeError as error:
            if not line.strip():
                continue
            raise _bad_json(path, number, line, error) from error
        if type(row) is not dict:
            raise _not_an_object(path, number, row)
        rows.append(row)
        numbers.append(number)
        if len(rows) == CHUNK_ROWS:
            yield RowChunk(str(path), rows, numbers)
            rows, numbers = [], []
    if rows:
        yield RowChunk(str(path), rows, numbers)


def _array_rows(path: Path, file: TextIO, text: str) -> Iterator[tuple[int, Row]]:
    """The elements of one JSON array, decoded as they are read: a file larger than memory works."""
    decode = json.JSONDecoder().raw_decode
    position, line = text.index("[") + 1, 1 + text.count("\n", 0, text.index("["))
    while True:
        start = _WHITESPACE.match(text, position).end()  # type: ignore[union-attr]
        line += text.count("\n", position, start)
        if text[start : start + 1] == "]":
            return
        try:
            row, end = decode(text, start)
        except json.JSONDecodeError as error:
            more = file.read(max(_READ_CHARS, len(text) - start))
            if not more:
                at = text.count("\n", start, error.pos)
                raise _bad_json(path, line + at, text[start:], error) from error
            text, position = text[start:] + more, 0
            continue
        if type(row) is not dict:
            raise _not_an_object(path, line, row)
        yield line, row
        line += text.count("\n", start, end)
        comma = _WHITESPACE.match(text, end).end()  # type: ignore[union-attr]
        if comma == len(text):
            text = text + file.read(_READ_CHARS)
            comma = _WHITESPACE.match(text, end).end()  # type: ignore[union-attr]
        line += text.count("\n", end, comma)
        if text[comma : comma + 1] not in (",", "]"):
            raise DataError(
                f"{path} line {line}: the JSON array ends without ']'. The file is cut short: write it again."
            )
        position = comma + (text[comma] == ",")


def _whole_object(path: Path, text: str) -> Row:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise _bad_json(
            path, error.lineno, text.splitlines()[error.lineno - 1 :][:1] or [""], error
        ) from error
    if type(row) is not dict:
        raise _not_an_object(path, 1, row)
    return row


def _csv_rows(path: Path, file: TextIO) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(_CSV_FIELD_CHARS)
    reader = csv.reader(file, strict=True)
    try:
        header = next(reader, [])
        number = reader.line_num + 1
        for fields in reader:
            if fields and len(fields) != len(header):
                raise DataError(
                    f"{path} line {number}: {len(fields)} fields, and the header has {len(header)}. Quote fields that hold a comma."
                )
            if fields:
                yield number, dict(zip(header, fields, strict=True))
            number = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f'{path} line {reader.line_num}: not CSV ({error}). Quote fields with ", and double a quote inside.'
        ) from error


def _text_rows(file: TextIO) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(file, 1):
        if text := line.rstrip("\n"):
            yield number, {"text": text}


def _read_parquet(path: Path) -> Iterator[RowChunk]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield from _batch_chunks(path, file.iter_batches(batch_size=CHUNK_ROWS))
    except pa.ArrowException as error:
        raise DataError(
            f"{path} is no readable Parquet file ({_one_line(error)}). Write it again."
        ) from error


def _read_arrow(path: Path) -> Iterator[RowChunk]:
    """Both of Arrow's layouts: a stream (what `datasets` writes) and a file."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            try:
                batches: Iterator[Any] = iter(pa.ipc.open_stream(source))
            except pa.ArrowInvalid:
                file = pa.ipc.open_file(source)
                batches = (file.get_batch(index) for index in range(file.num_record_batches))
            yield from _batch_chunks(path, batches)
    except pa.ArrowException as error:
        raise DataError(f"{path} is no readable Arrow file ({_one_line(error)}). Write it again.") from error


def _batch_chunks(path: Path, batches: Iterator[Any]) -> Iterator[RowChunk]:
    number = 1
    for batch in batches:
        for start in range(0, batch.num_rows, CHUNK_ROWS):
            rows = batch.slice(start, CHUNK_ROWS).to_pylist()
            yield RowChunk(str(path), rows, range(number, number + len(rows)), unit="row")
            number += len(rows)


def _chunks(path: str, rows: Iterator[tuple[int, Row]]) -> Iterator[RowChunk]:
    chunk: list[Row] = []
    numbers: list[int] = []
    for number, row in rows:
        chunk.append(row)
        numbers.append(number)
        if len(chunk) == CHUNK_ROWS:
            yield RowChunk(path, chunk, numbers)
            chunk, numbers = [], []
    if chunk:
        yield RowChunk(path, chunk, numbers)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def _bad_json(path: Path, number: int, text: Any, error: json.JSONDecodeError) -> DataError:
    return DataError(
        f"{path} line {number}: not JSON ({error.msg}): {_excerpt(text)}. Each line must be one whole JSON object."
    )


def _not_an_object(path: Path, number: int, row: Any) -> DataError:
    names = {"list": "a list", "str": "a string", "int": "a number", "float": "a number", "bool": "a boolean"}
    kind = names.get(type(row).__name__, "null")
    return DataError(
        f'{path} line {number}: {kind}, {_excerpt(json.dumps(row))}. Expected an object, such as {{"input": "...", "output": "..."}}.'
    )


def _excerpt(text: Any) -> str:
    line = str(text if isinstance(text, str) else text[0] if text else "").strip()
    return line if len(line) <= 60 else line[:57] + "..."  # noqa: PLR2004


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _undecodable_line(path: Path) -> int:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


_TABLE_READERS = {"parquet": _read_parquet, "arrow": _read_arrow}
