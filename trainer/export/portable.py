"""The form that every vLLM release applies alike: plain LoRA, one rank, one scaling, no copy of a base weight.

Trained rows of existing tokens become a LoRA on the embedding: A picks the row (one-hot), B is what training
added to it, (new - base) / scaling, computed in float32. Rank and alpha patterns are baked into B, and smaller
ranks are filled up with zeros, because releases before 0.32 know one rank and one scaling.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from airflow_provider_sft.contract.adapter_files import TensorEntry
from airflow_provider_sft.contract.adapter_layout import plain_scaling
from airflow_provider_sft.contract.errors import ExportError
from airflow_provider_sft.contract.vllm_releases import MAX_LORA_RANKS
from trainer.export.building import add_zero_rows, computed, rearranged, widen_columns
from trainer.export.experts import expert_layers, plain_modules, write_experts
from trainer.export.numbers import Array, read_array
from trainer.export.source import LoraModule, Source
from trainer.export.tensors import OutTensor, keep_tensor
from trainer.export.vocabulary import (
    NEW_EMBEDDINGS_KEYS,
    SIDES,
    Vocabulary,
    base_embedding,
    changed_rows,
)

_MAX_RANK = MAX_LORA_RANKS[-1]


@dataclass(frozen=True)
class Form:
    """An adapter ready to be written."""

    config: dict[str, Any]
    tensors: list[OutTensor]
    new_embeddings: list[OutTensor]
    notices: list[str]
    carried: frozenset[str]  # sides whose trained rows of existing tokens are in `tensors`


@dataclass(frozen=True)
class Shape:
    """The one rank and the one scaling of the form."""

    rank: int
    scaling: float


def build_form(source: Source, vocabulary: Vocabulary) -> Form:
    """:raises ExportError: this adapter has no such form"""
    notices: list[str] = []
    rows = {side: _rows_to_carry(source, vocabulary, side, notices) for side in SIDES}
    shape = _choose_shape(source, max(map(len, rows.values())))
    tensors = [tensor for module in plain_modules(source) for tensor in _write_module(source, module, shape)]
    for layer in expert_layers(source):
        tensors += write_experts(layer, rank=shape.rank, scaling=shape.scaling)
    for side in SIDES:
        if rows[side]:
            tensors += _rows_as_lora(source, vocabulary, side, rows[side], shape)
    if not tensors:
        raise ExportError(f"{source.directory} holds no LoRA. Set vllm_export to 'merged'.")
    carried = [vocabulary.embeddings[side].module for side in SIDES if rows[side]]
    return Form(
        config=_describe_form(source, shape, carried),
        tensors=tensors,
        new_embeddings=list(_new_embeddings(vocabulary)),
        notices=notices + _describe_losses(source, vocabulary),
        carried=frozenset(side for side in SIDES if rows[side]),
    )


def _rows_to_carry(
    source: Source, vocabulary: Vocabulary, side: str, notices: list[str]
) -> dict[int, TensorEntry]:
    """Trained rows of existing tokens. Beside added tokens, whose file is written in any case, none may stop it."""
    embedding = vocabulary.embeddings.get(side)
    if embedding is None:
        return {}
    try:
        rows = changed_rows(source, vocabulary, side)
    except ExportError as error:
        if not vocabulary.num_new or embedding.rows:
            raise
        notices.append(
            f"Rows of existing tokens in {embedding.module} may have been trained and are not carried: {error}"
        )
        return {}
    if len(rows) <= _MAX_RANK:
        return rows
    sentence = f"{len(rows)} rows of existing tokens in {embedding.module} were trained, and vLLM takes rank {_MAX_RANK} at most."
    if not vocabulary.num_new:
        raise ExportError(f"{sentence} Set vllm_export to 'merged'.")
    notices.append(f"{sentence} They are lost in the adapter: set vllm_export to 'merged'.")
    return {}


def _choose_shape(source: Source, num_rows: int) -> Shape:
    ranks = [int(source.config["r"]), num_rows, *(module.rank for module in plain_modules(source))]
    rank = max(*ranks, *(layer.rank for layer in expert_layers(source)))
    if rank > _MAX_RANK:
        raise ExportError(f"Rank {rank} is more than vLLM takes ({_MAX_RANK}). Set vllm_export to 'merged'.")
    return Shape(rank, plain_scaling(source.config))


def _write_module(source: Source, module: LoraModule, shape: Shape) -> Iterator[OutTensor]:
    name = module_on_disk(source, module.name)
    suffixes = (
        ("lora_embedding_A", "lora_embedding_B")
        if module.is_embedding
        else ("lora_A.weight", "lora_B.weight")
    )
    name_a, name_b = (f"base_model.model.{name}.{suffix}" for suffix in suffixes)
    missing = shape.rank - module.rank
    yield add_zero_rows(name_a, module.a, missing)
    if not missing and math.isclose(module.scaling, shape.scaling, rel_tol=1e-12):
        yield keep_tensor(name_b, module.b)
        return
    factor = module.scaling / shape.scaling
    yield computed(name_b, widen_columns(read_array(module.b) * factor, missing), module.b.dtype)


def module_on_disk(source: Source, module: str) -> str:
    """The module's name as vLLM has it."""
    return module if source.base is None else source.base.served_name(module)


def _rows_as_lora(
    source: Source, vocabulary: Vocabulary, side: str, rows: Mapping[int, TensorEntry], shape: Shape
) -> list[OutTensor]:
    import numpy as np

    embedding = vocabulary.embeddings[side]
    if any(module.name == embedding.module for module in source.lora_modules):
        raise ExportError(
            f"{embedding.module} carries LoRA and trained rows at once. Set vllm_export to 'merged'."
        )
    tokens = sorted(rows)
    one_hot = np.zeros((shape.rank, vocabulary.size or 0), "<f4")
    one_hot[range(len(tokens)), tokens] = 1
    added = np.concatenate([_added_to_row(source, vocabulary, side, token, rows[token]) for token in tokens])
    added = np.pad(added / np.float32(shape.scaling), ((0, shape.rank - len(tokens)), (0, 0)))
    dtype = rows[tokens[0]].dtype
    prefix = f"base_model.model.{module_on_disk(source, embedding.module)}"
    if side == "input":
        return [
            computed(f"{prefix}.lora_embedding_A", one_hot, dtype),
            computed(f"{prefix}.lora_embedding_B", added.T, dtype),
        ]
    return [
        computed(f"{prefix}.lora_A.weight", added, dtype),
        computed(f"{prefix}.lora_B.weight", one_hot.T, dtype),
    ]


def _added_to_row(source: Source, vocabulary: Vocabulary, side: str, token: int, row: TensorEntry) -> Array:
    embedding = vocabulary.embeddings[side]
    base = embedding.matrix if embedding.is_frozen_copy else None
    return read_array(row) - read_array(base or base_embedding(source, side), token, token + 1)


def _new_embeddings(vocabulary: Vocabulary) -> Iterator[OutTensor]:
    for side in SIDES:
        rows = vocabulary.new_rows(side)
        if len(rows) == 1:
            yield keep_tensor(NEW_EMBEDDINGS_KEYS[side], rows[0])
        elif (
            len({row.dtype for row in rows}) > 1
        ):  # trained in float32, beside rows of padding as the base has them
            yield rearranged(
                NEW_EMBEDDINGS_KEYS[side],
                "F32",
                (vocabulary.num_new, rows[0].shape[1]),
                partial(_stack, rows),
            )
        elif rows:
            shape = (vocabulary.num_new, rows[0].shape[1])
            yield OutTensor(NEW_EMBEDDINGS_KEYS[side], rows[0].dtype, shape, lambda rows=rows: rows)  # type: ignore[misc]


def _stack(rows: list[TensorEntry]) -> Array:
    import numpy as np

    return np.concatenate([read_array(row) for row in rows])


def _describe_losses(source: Source, vocabulary: Vocabulary) -> list[str]:
    if not vocabulary.num_new:
        return []
    sentence = (
        f"The rows of {vocabulary.num_new} added tokens are in new_embeddings.safetensors, which vLLM ignores since "
        "0.12. Set vllm_export to 'merged' or 'both' to serve them there."
    )
    notices = [sentence]
    if missing := [side for side in SIDES if not vocabulary.new_rows(side)]:
        notices.append(
            f"{source.directory} holds no {missing[0]} rows of the added tokens: they were not saved."
        )
    return notices


def _describe_form(source: Source, shape: Shape, carried: list[str]) -> dict[str, Any]:
    """adapter_config.json, so that PEFT and vLLM read from it what the tensors are."""
    config = {
        **source.config,
        **_scaling_keys(source, shape),
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
        "trainable_token_indices": None,
        "ensure_weight_tying": False,
    }
    split = [layer for layer in expert_layers(source) if layer.prefix is not None]
    if carried or split:
        leaves = [module.rpartition(".")[2] for module in carried]
        config |= _name_targets(
            source, [*leaves, *sorted({leaf for layer in split for leaf in (*layer.leaves, *layer.zeros)})]
        )
    if split:
        config["target_parameters"] = None
    elif any(layer.lacks_other for layer in expert_layers(source)):
        config["target_parameters"] = _name_both(config.get("target_parameters") or [])
    return {key: value for key, value in config.items() if key in source.config or value}


def _name_both(parameters: list[str]) -> list[str]:
    """Both of the experts' parameters where one of them is named."""
    pairs = (("gate_up_proj", "down_proj"), ("down_proj", "gate_up_proj"))
    others = [
        f"{name.removesuffix(one)}{other}"
        for name in parameters
        for one, other in pairs
        if name.endswith(one)
    ]
    return [*parameters, *(name for name in dict.fromkeys(others) if name not in parameters)]


def _scaling_keys(source: Source, shape: Shape) -> dict[str, Any]:
    """Beside experts the square root of rsLoRA is written out, because vLLM 0.12 ignores it there."""
    rooted = bool(source.config.get("use_rslora")) and not expert_layers(source)
    if shape.rank == source.config["r"] and rooted == bool(source.config.get("use_rslora")):
        return {}
    alpha = shape.scaling * (math.sqrt(shape.rank) if rooted else shape.rank)
    near = round(alpha)
    return {
        "r": shape.rank,
        "lora_alpha": near if math.isclose(alpha, near, rel_tol=1e-12) else alpha,
        "use_rslora": rooted,
    }


def _name_targets(source: Source, added: list[str]) -> dict[str, Any]:
    """`target_modules` with what carries LoRA now; every module by name where a rule would leave it out."""
    targets = source.config.get("target_modules")
    limited = source.config.get("layers_to_transform") is not None or source.config.get("exclude_modules")
    named = [module_on_disk(source, module.name) for module in plain_modules(source)]
    if isinstance(targets, list) and not limited:
        unnamed = [name for name in named if not any(name == t or name.endswith(f".{t}") for t in targets)]
        return {"target_modules": [*targets, *[n for n in (*unnamed, *added) if n not in targets]]}
    return {
        "target_modules": sorted({*named, *added}),
        "layers_to_transform": None,
        "layers_pattern": None,
        "exclude_modules": None,
    }
