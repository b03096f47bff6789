"""Rows out of files, with the line each came from: JSON lines, CSV, text, Parquet, Arrow, the Hub; JSON is `json_rows`.

Every sentence of a failure names file and line. Lines and rows count from 1.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from airflow_provider_sft.contract.errors import AccessDeniedError, DataError, TransientError
from trainer.data.files import KINDS, DataSource
from trainer.data.json_rows import Row, is_json_lines, read_json_lines, read_json_rows

CHUNK_ROWS = 2048
_CSV_FIELD_CHARS = 1 << 30


@dataclass(frozen=True)
class RowChunk:
    """Rows of one file, and the line (text files) or row (Parquet, Arrow, the Hub) each stands in."""

    path: str
    rows: list[Row]
    numbers: Sequence[int]
    unit: str = "line"

    def where(self, index: int) -> str:
        return f"{self.path} {self.unit} {self.numbers[index]}"

    def part(self, start: int, end: int) -> RowChunk:
        return RowChunk(self.path, self.rows[start:end], self.numbers[start:end], self.unit)


@dataclass(frozen=True)
class RowPlace:
    """A line of one of a data set's files, counted from 1, where reading can begin."""

    file: int
    line: int


def read_source(
    source: DataSource, *, split: str = "train", streaming: bool = False, start: RowPlace | None = None
) -> Iterator[RowChunk]:
    """The rows of a data set, in order.

    :param split: of a Hub data set
    :param streaming: read a Hub data set as it downloads
    :param start: only where `can_start_anywhere`
    """
    if source.hub_id:
        yield from _read_hub(source, split, streaming=streaming)
    for number, path in enumerate(source.files):
        if start is None or number > start.file:
            yield from _unchanged(source, path, read_chunks(path, kind=source.kind))
        elif number == start.file:
            yield from _unchanged(source, path, _chunks(path, read_json_lines(path, start.line)))


def _unchanged(source: DataSource, path: Path, chunks: Iterator[RowChunk]) -> Iterator[RowChunk]:
    """Rows count only while their file is the one that was digested: it is looked at after each chunk is read."""
    source.digests.refuse_changed(path)
    try:
        for chunk in chunks:
            source.digests.refuse_changed(path)
            yield chunk
    except DataError:  # half of another file is mostly not data
        source.digests.refuse_changed(path)
        raise
    source.digests.refuse_changed(path)


def can_start_anywhere(source: DataSource) -> bool:
    """Whether the rows can be read from a place in their middle on, without those before: JSON lines can."""
    kinds = {source.kind or KINDS[path.suffix] for path in source.files}
    return not source.hub_id and kinds == {"json"} and all(is_json_lines(path) for path in source.files)


def read_chunks(path: Path, *, kind: str | None = None) -> Iterator[RowChunk]:
    """The rows of `path`, in order, `CHUNK_ROWS` at a time.

    :param kind: json, csv, text, parquet or arrow; the suffix says, unless this does
    :raises DataError: not what it is said to be, with the line
    :raises AccessDeniedError, TransientError: not readable, or not to its end
    """
    reader = _READERS[kind or KINDS[path.suffix]]
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        line = _undecodable_line(path)
        raise DataError(
            f"{path} line {line} is not UTF-8 ({error.reason}). Save the file as UTF-8."
        ) from error
    except PermissionError as error:
        raise AccessDeniedError(
            f"{path} cannot be read ({error.strerror}). Give the pod's user the right to read it."
        ) from error
    except OSError as error:
        raise TransientError(f"{path} could not be read to its end ({error}).") from error


def _read_json(path: Path) -> Iterator[RowChunk]:
    with path.open(encoding="utf-8-sig") as file:
        yield from _chunks(path, read_json_rows(path, file))


def _read_csv(path: Path) -> Iterator[RowChunk]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from _chunks(path, _csv_rows(path, file))


def _read_lines(path: Path) -> Iterator[RowChunk]:
    """A row a line, as `text`; blank lines are left out."""
    with path.open(encoding="utf-8-sig") as file:
        lines = ((number, line.rstrip("\n")) for number, line in enumerate(file, 1))
        yield from _chunks(path, ((number, {"text": line}) for number, line in lines if line.strip()))


def _csv_rows(path: Path, file: TextIO) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(_CSV_FIELD_CHARS)
    reader = csv.reader(file, strict=True)
    try:
        header = next(reader, [])
        number = reader.line_num + 1
        for fields in reader:
            if fields and len(fields) != len(header):
                raise DataError(
                    f"{path} line {number}: {len(fields)} fields, and the header has {len(header)}. Quote fields "
                    "that hold a comma."
                )
            if fields:
                yield number, dict(zip(header, fields, strict=True))
            number = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f'{path} line {reader.line_num}: not CSV ({error}). Quote fields with ", and double a quote inside.'
        ) from error


def _read_parquet(path: Path) -> Iterator[RowChunk]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield from _batch_chunks(path, file.iter_batches(batch_size=CHUNK_ROWS))
    except pa.ArrowException as error:
        raise DataError(f"{path} is no whole Parquet file ({_one_line(error)}). Write it again.") from error


def _read_arrow(path: Path) -> Iterator[RowChunk]:
    """Both of Arrow's layouts: a stream (what `datasets` writes) and a file."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            try:
                batches: Iterable[Any] = pa.ipc.open_stream(source)
            except pa.ArrowInvalid:
                file = pa.ipc.open_file(source)
                batches = (file.get_batch(index) for index in range(file.num_record_batches))
            yield from _batch_chunks(path, batches)
    except pa.ArrowException as error:
        raise DataError(f"{path} is no whole Arrow file ({_one_line(error)}). Write it again.") from error


def _batch_chunks(path: Path, batches: Iterable[Any]) -> Iterator[RowChunk]:
    number = 1
    for batch in batches:
        for start in range(0, batch.num_rows, CHUNK_ROWS):
            rows = batch.slice(start, CHUNK_ROWS).to_pylist()
            yield RowChunk(str(path), rows, range(number, number + len(rows)), unit="row")
            number += len(rows)


def _read_hub(source: DataSource, split: str, *, streaming: bool) -> Iterator[RowChunk]:
    from trainer.data.hub import open_hub_rows

    rows, number = open_hub_rows(str(source.hub_id), source.key, split, streaming=streaming), 1
    while chunk := list(islice(rows, CHUNK_ROWS)):
        yield RowChunk(str(source), chunk, range(number, number + len(chunk)), unit="row")
        number += len(chunk)


def _chunks(path: Path, rows: Iterator[tuple[int, Row]]) -> Iterator[RowChunk]:
    while chunk := list(islice(rows, CHUNK_ROWS)):
        yield RowChunk(str(path), [row for _, row in chunk], [number for number, _ in chunk])


def _undecodable_line(path: Path) -> int:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


_READERS: dict[str, Callable[[Path], Iterator[RowChunk]]] = {
    "json": _read_json,
    "csv": _read_csv,
    "text": _read_lines,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
}
