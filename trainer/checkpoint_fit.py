"""Whether a checkpoint is of this base model and this way of tuning: by its manifest, else by its own files' headers.

Stdlib only: it is asked before a model loads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.adapter_files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    read_tensor_file,
)
from airflow_provider_sft.contract.errors import SFTError
from airflow_provider_sft.contract.wording import show
from trainer.checkpoints import MANIFEST_FILE
from trainer.files import read_json
from trainer.identity import IDENTITY_VERSION

_SHAPE_KEYS = (
    "model_type", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads",
)  # fmt: skip
_TUNING_KEYS = ("r", "rank_pattern", "use_dora", "num_virtual_tokens")
_PEFT_TYPES = {"lora": "LORA", "alora": "LORA", "pt": "PROMPT_TUNING"}
_LORA_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])\.weight")
_MATRIX = 2
# With one of these an adapter need not be in every layer of the base.
_SELECTING = (
    "layers_to_transform",
    "layers_pattern",
    "layer_replication",
    "exclude_modules",
    "target_parameters",
)
_LAYER = re.compile(r"\.(\d+)\.")

Shape = tuple[int, ...]


def describe_run(values: Mapping[str, Any], weights_sha256: str) -> dict[str, Any]:
    """What each manifest says of the base model and of the tuning.

    :param values: `settings.values`
    """
    name = str(values["model_name_or_path"])
    method = values.get("peft_method") or "none"
    keys = () if method == "none" else ("num_virtual_tokens",) if method == "pt" else _TUNING_KEYS[:-1]
    shape = _read_shape(Path(name, str((values.get("model_init_kwargs") or {}).get("subfolder") or "")))
    return {
        "base": {"version": IDENTITY_VERSION, "sha256": weights_sha256, **shape},
        "tuning": {"peft_method": method, **{key: values[key] for key in keys if values.get(key)}},
    }


def find_misfit(checkpoint: Path, run: Mapping[str, Any], model: Path) -> str | None:
    """Why `checkpoint` is not one of this run, as a clause.

    :param run: as `describe_run` gives it
    :param model: the base model's directory; judged by its headers where it is one
    """
    manifest = read_json(checkpoint / MANIFEST_FILE) or {}
    misfits = chain(
        _compare_base(manifest.get("base"), run["base"]),
        _compare_tuning(manifest.get("tuning"), run["tuning"]),
        _compare_files(checkpoint, run, model),
    )
    return next(misfits, None)


def _compare_base(theirs: object, ours: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(theirs, Mapping):
        return
    yield from _compare_shapes(theirs, ours)
    if theirs.get("version") == ours["version"] and theirs.get("sha256") != ours["sha256"]:
        yield "it was trained over other weights of the base model"


def _compare_shapes(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[str]:
    for key in _SHAPE_KEYS:
        if key in theirs and key in ours and theirs[key] != ours[key]:
            yield f"its base model has {key} {show(theirs[key])}, and this one {show(ours[key])}"


def _compare_tuning(theirs: object, ours: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(theirs, Mapping):
        return
    methods = [str(each.get("peft_method", "none")) for each in (theirs, ours)]
    if methods[0] != methods[1]:
        yield f"it holds {_kind(methods[0])}, and peft_method is {methods[1]!r}"
        return
    for key in _TUNING_KEYS:
        if (was := theirs.get(key) or None) != (now := ours.get(key) or None):
            yield f"its adapter has {key} {show(was)}, and the config says {show(now)}"


def _compare_files(checkpoint: Path, run: Mapping[str, Any], model: Path) -> Iterator[str]:
    adapter = read_json(checkpoint / ADAPTER_CONFIG_FILE)
    method = run["tuning"]["peft_method"]
    if adapter is None and (shape := _read_shape(checkpoint)):
        if method != "none":
            yield f"it holds a whole model, and peft_method is {method!r}"
        yield from _compare_shapes(shape, run["base"])
    elif adapter is not None and _PEFT_TYPES.get(method) != adapter.get("peft_type"):
        yield f"it holds an adapter ({show(adapter.get('peft_type'))}), and peft_method is {method!r}"
    elif adapter is not None:
        keys = [key for key in _TUNING_KEYS if key in adapter]
        yield from _compare_tuning(
            {"peft_method": method, **{key: adapter[key] for key in keys}},
            {key: value for key, value in run["tuning"].items() if key in (*keys, "peft_method")},
        )
        yield from _compare_matrices(checkpoint / ADAPTER_WEIGHTS_FILE, adapter, _read_matrices(model))


def _compare_matrices(weights: Path, adapter: Mapping[str, Any], base: Mapping[str, Shape]) -> Iterator[str]:
    """LoRA's A is [rank, in] and B [out, rank], the base's matrix [out, in], in some architectures [in, out]."""
    found = [
        (match[1], shape[1] if match[2] == "A" else shape[0])
        for name, shape in _read_shapes(weights).items()
        if (match := _LORA_TENSOR.fullmatch(name)) and len(shape) == _MATRIX
    ]
    for module, width in found:
        if (matrix := base.get(f"{module}.weight")) and width not in matrix:
            yield f"its {module} has width {width}, and the base model's is {' x '.join(map(str, matrix))}"
    selects = any(adapter.get(key) for key in _SELECTING) or not isinstance(
        adapter.get("target_modules"), list
    )
    there = _find_layers(name.removesuffix(".weight") for name in base)
    for kind, layers in _find_layers(module for module, _ in found).items():
        ours = there.get(kind, set())
        if ours and (layers - ours or (not selects and ours - layers)):
            yield f"it has {len(layers)} layers, and the base model {len(ours)}"


def _find_layers(modules: Iterable[str]) -> dict[str, set[int]]:
    """Kind of module → the layers that have it: `model.layers.*.self_attn.q_proj` → {0, 1}."""
    kinds: dict[str, set[int]] = {}
    for module in modules:
        if match := _LAYER.search(module):
            kinds.setdefault(_LAYER.sub(".*.", module, count=1), set()).add(int(match[1]))
    return kinds


def _read_matrices(model: Path) -> dict[str, Shape]:
    found: dict[str, Shape] = {}
    for path in sorted(model.glob("*.safetensors")):
        found |= {name: shape for name, shape in _read_shapes(path).items() if len(shape) == _MATRIX}
    return found


def _read_shapes(path: Path) -> dict[str, Shape]:
    """Of tensors that are stored as they are; packed ones of a quantised model have shapes of their own."""
    try:
        tensors = read_tensor_file(path).tensors
        return {name: each.shape for name, each in tensors.items() if each.dtype.startswith(("F", "BF"))}
    except (SFTError, OSError, AttributeError, TypeError, ValueError):
        return {}  # damage is judged elsewhere


def _read_shape(directory: Path) -> dict[str, Any]:
    config = read_json(directory / "config.json") or {}
    text = config.get("text_config")
    config = {**config, **text} if isinstance(text, dict) else config
    return {key: config[key] for key in _SHAPE_KEYS if key in config}


def _kind(method: str) -> str:
    return "a whole model" if method == "none" else f"an adapter ({method})"
