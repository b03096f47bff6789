"""Safetensors files written as a stream: kept tensors are copied by the kernel, computed ones block by block."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from airflow_provider_sft.contract.adapter_files import TensorEntry
from trainer.export.tensors import DTYPE_BYTES, Chunk, OutTensor
from trainer.files import naming

_BLOCK_BYTES = 1 << 20
_PAGE_BYTES = 4096
_LENGTH_BYTES = 8
_ALIGNMENT = 8  # of the data, as the safetensors library pads its headers
_NO_KERNEL_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)


def write_tensor_file(path: Path, tensors: Iterable[OutTensor], metadata: Mapping[str, str]) -> None:
    """Write a new file and flush it to disk. Tensors of the same files give the same bytes, in the library's own order."""
    ordered = sorted(tensors, key=lambda tensor: (-DTYPE_BYTES[tensor.dtype], tensor.name))
    with create_file(path) as descriptor:
        _write_all(descriptor, _encode_header(ordered, metadata))
        sources = _Sources()
        try:
            for chunk in _join_ranges(chunk for tensor in ordered for chunk in tensor.chunks()):
                _write_chunk(descriptor, chunk, sources)
        finally:
            sources.close()


@contextmanager
def create_file(path: Path) -> Iterator[int]:
    """A new file, readable by whom the umask allows (mode 0666 & ~umask), on disk when the block ends."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        with naming(path):
            yield descriptor
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    with create_file(path) as descriptor:
        _write_all(descriptor, content)


def copy_file(source: Path, target: Path) -> None:
    with create_file(target) as descriptor:
        sources = _Sources()
        try:
            size_bytes = source.stat().st_size
            _copy_range(descriptor, TensorEntry(source, "U8", (size_bytes,), 0, size_bytes), sources)
        finally:
            sources.close()


def _encode_header(tensors: list[OutTensor], metadata: Mapping[str, str]) -> bytes:
    """Padded with blanks, so that most kept bytes fall on pages as they did where they come from.

    Pages are what the kernel copies fast, and what volumes that can (XFS, Btrfs) share instead of copying.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    shifts: Counter[int] = Counter({0: 1})
    offset = 0
    for tensor in tensors:
        end = offset + tensor.size_bytes
        if tensor.kept:
            shifts[(tensor.kept.begin - offset) % _PAGE_BYTES] += tensor.size_bytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    wanted = shifts.most_common(1)[0][0]
    whole = wanted % _ALIGNMENT == 0 and wanted != 0
    encoded += b" " * ((wanted - _LENGTH_BYTES - len(encoded)) % (_PAGE_BYTES if whole else _ALIGNMENT))
    return len(encoded).to_bytes(_LENGTH_BYTES, "little") + encoded


def _join_ranges(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Neighbouring ranges of one file become one: a kept adapter is a handful of copies, not hundreds."""
    pending: TensorEntry | None = None
    for chunk in chunks:
        if isinstance(chunk, TensorEntry):
            if pending and pending.path == chunk.path and pending.end == chunk.begin:
                pending = pending._replace(end=chunk.end)
                continue
            if pending:
                yield pending
            pending = chunk
            continue
        if pending:
            yield pending
            pending = None
        yield chunk
    if pending:
        yield pending


class _Sources:
    """The files that are copied from, each opened once."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}

    def open(self, path: Path) -> int:
        if path not in self._descriptors:
            self._descriptors[path] = os.open(path, os.O_RDONLY)
        return self._descriptors[path]

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)


def _write_chunk(descriptor: int, chunk: Chunk, sources: _Sources) -> None:
    if isinstance(chunk, TensorEntry):
        _copy_range(descriptor, chunk, sources)
    else:
        _write_all(descriptor, chunk)


def _copy_range(descriptor: int, entry: TensorEntry, sources: _Sources) -> None:
    source, offset = sources.open(entry.path), entry.begin
    shifted = (offset - os.lseek(descriptor, 0, os.SEEK_CUR)) % _PAGE_BYTES
    while offset < entry.end:
        count = entry.end - offset
        copied = _copy_shifted(source, descriptor, offset, count) if shifted else 0
        copied = copied or _copy_pages(source, descriptor, offset, count)
        if copied == 0:
            raise OSError(errno.EIO, "shrank while it was read", str(entry.path))
        offset += copied


def _copy_pages(source: int, target: int, offset: int, count: int) -> int:
    """By the kernel, which shares the blocks where the volume can."""
    try:
        return os.copy_file_range(source, target, count, offset_src=offset)
    except OSError as error:
        if error.errno not in _NO_KERNEL_COPY:
            raise
    return os.sendfile(target, source, offset, count)


def _copy_shifted(source: int, target: int, offset: int, count: int) -> int:
    """Where a page of the source falls on two of the target the kernel's copy takes twice as long (measured)."""
    block = os.pread(source, min(count, _BLOCK_BYTES), offset)
    _write_all(target, block)
    return len(block)


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content).cast("B")
    while view:
        view = view[os.write(descriptor, view) :]
