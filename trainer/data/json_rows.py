"""JSON in the three shapes people have it: an object a line, one array of objects, one object. Stdlib only."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, TextIO

from airflow_provider_sft.contract.errors import DataError

_READ_CHARS = 1 << 22
_SPACE = re.compile(r"[ \t\n\r]*")
_BLANKS = " \t\n\r\ufeff"
_LONGEST_EXCERPT = 60
_KIND_NAMES = {
    "list": "a list",
    "str": "a string",
    "int": "a number",
    "float": "a number",
    "bool": "a boolean",
}

Row = dict[str, Any]


def read_json_rows(path: Path, file: TextIO) -> Iterator[tuple[int, Row]]:
    """Each object and the line it starts in.

    :param path: for sentences
    :raises DataError: no JSON, or JSON that is no object, with the line
    """
    try:
        yield from _read_rows(path, file)
    except RecursionError as error:
        raise DataError(f"{path}: nested too deep to be read. Expected objects of texts.") from error


def _read_rows(path: Path, file: TextIO) -> Iterator[tuple[int, Row]]:
    head = file.read(_READ_CHARS)
    shape = _find_shape(head)
    if shape == "array":
        yield from _ArrayReader(path, file, head).rows()
    elif shape == "object":
        start = len(head) - len(head.lstrip())
        yield 1 + head.count("\n", 0, start), _checked(path, 1, json.loads(head))
    else:
        file.seek(0)
        yield from _line_rows(path, file)


def _find_shape(head: str) -> Literal["array", "object", "lines"]:
    stripped = head.lstrip()
    if stripped.startswith("[") and _is_array_of_objects(stripped):
        return "array"
    if len(head) < _READ_CHARS and not _parses(stripped.split("\n", 1)[0]) and _parses(stripped):
        return "object"
    return "lines"


def is_json_lines(path: Path) -> bool:
    """An object a line, as far as the file's head tells, so that reading can begin at any of them."""
    with path.open(encoding="utf-8-sig") as file:
        head = file.read(_READ_CHARS)
        ends = file.newlines  # those seen: None, one, or a tuple
    return _find_shape(head) == "lines" and "\r" not in (ends if isinstance(ends, tuple) else (ends,))


def read_json_lines(path: Path, first_line: int) -> Iterator[tuple[int, Row]]:
    """The rows from line `first_line` on, without a look at those before; lines end as `is_json_lines` takes them to."""
    with path.open("rb") as file:
        file.seek(_find_line(file, first_line))
        yield from _line_rows(path, io.TextIOWrapper(file, encoding="utf-8"), first_line)


def _find_line(file: BinaryIO, number: int) -> int:
    """Where in `file` line `number` begins, in bytes; counting them is all that is done to the lines before."""
    left, offset = number - 1, 0
    while left and (block := file.read(_READ_CHARS)):
        if (ends := block.count(b"\n")) < left:
            left, offset = left - ends, offset + len(block)
            continue
        end = -1
        for _ in range(left):
            end = block.index(b"\n", end + 1)
        return offset + end + 1
    return offset


def _line_rows(path: Path, file: TextIO, first_line: int = 1) -> Iterator[tuple[int, Row]]:
    """Blank lines count and are left out."""
    decode = json.JSONDecoder().raw_decode  # half the time of json.loads, for short lines
    for number, line in enumerate(file, first_line):
        text = line.strip(_BLANKS)
        try:
            row, end = decode(text)
        except json.JSONDecodeError as error:
            if not text:
                continue
            raise _bad_json(path, number, text, error) from error
        if end < len(text):
            raise _bad_json(path, number, text, json.JSONDecodeError("Extra data", text, end))
        if type(row) is not dict:
            raise _not_an_object(path, number, row)
        yield number, row


class _ArrayReader:
    """The elements of one array, decoded as they are read: a file larger than memory works."""

    def __init__(self, path: Path, file: TextIO, head: str) -> None:
        self._path, self._file = path, file
        self._text, self._at, self._line = head, 0, 1
        self._decode = json.JSONDecoder().raw_decode

    def rows(self) -> Iterator[tuple[int, Row]]:
        self._skip("[")
        if self._peek() == "]":
            return
        while True:
            self._peek()
            line, row = self._line, self._element()
            yield line, _checked(self._path, line, row)
            if self._peek() == "]":
                return
            self._skip(",")

    def _element(self) -> Any:
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._read_more():
                    continue
                line = self._line + self._text.count("\n", self._at, error.pos)
                raise _bad_json(self._path, line, self._text[self._at :], error) from error
            self._advance(end)
            return value

    def _peek(self) -> str:
        """The next character that is no white space; "" at the end of the file."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._advance(space.end() if space else self._at)
            if self._at < len(self._text) or not self._read_more():
                return self._text[self._at : self._at + 1]

    def _skip(self, expected: str) -> None:
        found = self._peek()
        if found != expected:
            what = f"{found!r} where {expected!r} should be" if found else "the array ends without ']'"
            raise DataError(
                f"{self._path} line {self._line}: not JSON, {what}. The file is cut short or damaged: write it again."
            )
        self._advance(self._at + 1)

    def _advance(self, end: int) -> None:
        self._line += self._text.count("\n", self._at, end)
        self._at = end

    def _read_more(self) -> bool:
        # At least as much as is held, so that one large element is not decoded again and again.
        more = self._file.read(max(_READ_CHARS, len(self._text) - self._at))
        self._text, self._at = self._text[self._at :] + more, 0
        return bool(more)


def _is_array_of_objects(text: str) -> bool:
    """False where only the first line of a JSON lines file is a list, which is wrong in that line."""
    inside = text[1:].lstrip()
    return inside[:1] in ("{", "]", "") or not _parses(text.split("\n", 1)[0])


def _checked(path: Path, number: int, row: Any) -> Row:
    if type(row) is not dict:
        raise _not_an_object(path, number, row)
    return row


def _parses(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def _bad_json(path: Path, number: int, text: str, error: json.JSONDecodeError) -> DataError:
    return DataError(
        f"{path} line {number}: not JSON ({error.msg}): {_excerpt(text)} Each line must be one whole JSON object, or "
        "the file one array of objects."
    )


def _not_an_object(path: Path, number: int, row: Any) -> DataError:
    kind = _KIND_NAMES.get(type(row).__name__, "null")
    return DataError(
        f"{path} line {number}: {kind}, {_excerpt(json.dumps(row, ensure_ascii=False))} Expected an object, such as "
        '{"input": "...", "output": "..."}.'
    )


def _excerpt(text: str) -> str:
    line = text.strip().split("\n", 1)[0].strip()
    return f"{line}." if len(line) <= _LONGEST_EXCERPT else f"{line[: _LONGEST_EXCERPT - 3]}... ."
