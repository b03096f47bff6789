"""What a file of a checkpoint would import when it is loaded, found out without running any of it. Stdlib only.

torch's `weights_only` refuses code as well, but the metadata of a sharded checkpoint is unpickled without it, and a
checkpoint known to be crafted before the ranks start can be skipped for the one before it.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

# Left by transformers, and never read by anything here.
_NEVER_LOADED = "training_args.bin"
_TENSORS = re.compile(
    r"collections\.(OrderedDict|defaultdict|Counter)"
    r"|torch\.(\w+Storage|Size|device|strided|bool|bfloat16|(u?int|float|complex)\d+\w*)"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state|sparse_tensor)"
    r"|torch\.storage\.\w+Storage|torch\.serialization\._get_layout"
    r"|numpy(\._?core)?\.(ndarray|dtype|multiarray\.(_reconstruct|scalar))|numpy\.dtypes\.\w+|_codecs\.encode"
    r"|torchao\.[\w.]+"  # tensors of its optimisers; `weights_only` knows which of them
)
_METADATA = re.compile(
    _TENSORS.pattern.replace(r"|torchao\.[\w.]+", "")
    + r"|torch\.distributed\.checkpoint\.metadata\.\w+"
    + r"|torch\.distributed\.checkpoint\.filesystem\._StorageInfo|pathlib\.(Pure)?(Posix)?Path"
)
# A file of torch before its zip format is a row of pickles: magic number, protocol, system, object, keys.
_MAX_PICKLES = 5


def find_unsafe_pickles(directory: Path) -> Iterator[str]:
    """A flaw for each file below `directory` that holds more than tensors, numbers and texts."""
    for path in sorted(directory.rglob("*")):
        if path.name == ".metadata":
            allowed = _METADATA
        elif path.suffix in (".pt", ".pth", ".bin") and path.name != _NEVER_LOADED:
            allowed = _TENSORS
        else:
            continue
        try:
            names = _find_imports(path)
        except Exception:  # noqa: BLE001  # a crafted pickle can raise anything
            yield f"{path.name} cannot be read"
            continue
        if strange := sorted(name for name in names if not allowed.fullmatch(name)):
            yield f"{path.name} names {strange[0]}, which is no part of a tensor, and is not loaded"


def _find_imports(path: Path) -> set[str]:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return _Recorder(file).record(_MAX_PICKLES)
    names: set[str] = set()
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".pkl"):
                names |= _Recorder(io.BytesIO(archive.read(name))).record(1)
    return names


class _Inert:
    """Stands for whatever a pickle asks for, and does nothing."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None: ...
    def __call__(self, *_args: Any, **_kwargs: Any) -> _Inert:
        return self

    def __setstate__(self, _state: Any) -> None: ...
    def __setitem__(self, _key: Any, _value: Any) -> None: ...
    def append(self, _value: Any) -> None: ...
    def extend(self, _values: Any) -> None: ...
    def add(self, _value: Any) -> None: ...


class _Recorder(pickle.Unpickler):  # it imports nothing
    """Unpickles into nothing and remembers the names that were asked for."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._names: set[str] = set()

    def record(self, max_pickles: int) -> set[str]:
        self.load()
        for _ in range(max_pickles - 1):
            try:
                self.load()
            except (EOFError, pickle.UnpicklingError):  # what follows is tensors' bytes
                break
        return self._names

    def find_class(self, module: str, name: str) -> Any:
        self._names.add(f"{module}.{name}")
        return _Inert

    def persistent_load(self, _key: Any) -> Any:
        return _Inert()
