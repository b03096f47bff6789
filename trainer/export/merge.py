"""Whole models, written shard by shard: the base with the adapter merged in, or with the vocabulary alone.

Tensors that the adapter leaves alone are copied by the kernel, the others are computed block by block, so that
memory holds one block and never a model.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any

from airflow_provider_sft.contract.adapter_files import TensorEntry
from airflow_provider_sft.contract.adapter_layout import Role, embedding_side
from airflow_provider_sft.contract.base_model import BaseModel
from airflow_provider_sft.contract.errors import ExportError
from trainer.export.edits import Delta, Edit
from trainer.export.experts import ExpertLayer, expert_layers, plain_modules
from trainer.export.numbers import Array, read_array
from trainer.export.source import LoraModule, Source
from trainer.export.vocabulary import SIDES, Embedding, Vocabulary

_FUSED_TRANSPOSED = frozenset(
    {"gpt_oss", "aria", "aria_text", "openai_privacy_filter"}
)  # is_transposed in transformers


class MergePlan:
    """The edits by tensor name, and whether the output embedding needs weights of its own."""

    def __init__(self, source: Source, vocabulary: Vocabulary) -> None:
        """:raises ExportError: the base model was not found, or is quantised"""
        if source.base is None:
            raise ExportError(
                f"The base model {source.config.get('base_model_name_or_path')!r} of {source.directory} was not "
                "found, and a whole model is made of it. Give its directory with --base."
            )
        self.source = source
        self.base: BaseModel = source.base
        self.vocabulary = vocabulary
        self.edits: dict[str, Edit] = {}
        _refuse_quantised(self.base)

    def add_new_tokens(self, *, carried: Collection[str]) -> MergePlan:
        """The rows that the adapter, served on this base, cannot bring.

        :param carried: sides whose trained rows of existing tokens the adapter brings as LoRA
        """
        for side, embedding in self.vocabulary.embeddings.items():
            brought = side in carried or not embedding.is_trained
            self._edit_vocabulary(side, replace(embedding, rows={}, matrix=None) if brought else embedding)
        return self

    def add_adapter(self) -> MergePlan:
        """Everything that was tuned."""
        for side in SIDES:
            if embedding := self.vocabulary.embeddings.get(side):
                self._edit_vocabulary(side, embedding, tied=not self._carries_lora())
        for module in plain_modules(self.source):
            self._add_lora(module)
        for layer in expert_layers(self.source):
            self._add_experts(layer)
        for role in (Role.WHOLE, Role.BIAS, Role.LORA_BIAS):
            for module_name in self.source.modules_with(role):
                self._add_parameter(module_name, role)
        self._untie_output()
        return self

    @property
    def unties(self) -> bool:
        return self.base.is_tied and self._output_name in self.edits

    @property
    def dropped(self) -> str | None:
        """A tied output embedding that the base has on disk all the same: the edited input takes its place."""
        edited = self.base.is_tied and not self.unties and bool(self.edits)
        return self.base.embedding_name("output") if edited else None

    @property
    def _output_name(self) -> str:
        return self.base.embedding_name("output") or "lm_head.weight"

    def _untie_output(self) -> None:
        """Where tuning changed the input embedding alone, a tied output embedding keeps the base's weights."""
        if not self.base.is_tied or self.unties:
            return
        tuned = self.vocabulary.embeddings.get("input")
        lora = any(embedding_side(module.name) == "input" for module in self.source.lora_modules)
        if lora or (tuned is not None and tuned.is_trained and "output" not in self.vocabulary.embeddings):
            edit = self._embedding_edit("output")
            if edit.start.shape[0] != self.vocabulary.size:
                raise ExportError(
                    f"{self.source.directory} holds no lm_head rows for the {self.vocabulary.num_new} added tokens. "
                    "Save the adapter again with save_embedding_layers=True."
                )
            self.edits[edit.name] = edit

    def _edit_vocabulary(self, side: str, embedding: Embedding, *, tied: bool = True) -> None:
        if side == "output" and tied and self._is_still_tied():
            return
        edit = self._embedding_edit(side)
        if embedding.matrix is not None and not embedding.is_frozen_copy:
            edit = replace(edit, whole=embedding.matrix)
        appended = (
            tuple(self.vocabulary.new_rows(side)) if edit.start.shape[0] != self.vocabulary.size else ()
        )
        rows = {token: row for token, row in embedding.rows.items() if token < edit.start.shape[0]}
        if edit.whole or appended or rows:
            self.edits[edit.name] = replace(edit, appended=appended, rows=rows)

    def _is_still_tied(self) -> bool:
        """Whether the tuned output embedding is the tuned input embedding, as in the base."""
        output, tuned = (self.vocabulary.embeddings.get(side) for side in ("output", "input"))
        if not self.base.is_tied or output is None or tuned is None:
            return False
        same_rows = output.rows.keys() == tuned.rows.keys() and all(
            _same_bytes(output.rows[token], tuned.rows[token]) for token in output.rows
        )
        return (
            same_rows
            and _same_matrix(output.matrix, tuned.matrix)
            and _same_matrix(output.new_rows, tuned.new_rows)
        )

    def _carries_lora(self) -> bool:
        return any(embedding_side(module.name) for module in self.source.lora_modules)

    def _embedding_edit(self, side: str) -> Edit:
        """Begun from the base's own matrix, or, where the output is tied, from the input's before tuning."""
        name = self.base.embedding_name(side)
        if name is not None and not (side == "output" and self.base.is_tied):
            return self.edits.get(name) or Edit(name, self.base.tensors[name])
        source_name = self.base.embedding_name("input")
        if source_name is None:
            raise ExportError(
                f"The base model {self.base.directory} has no embedding that this export knows."
            )
        name = name or "lm_head.weight"
        return self.edits.get(name) or Edit(name, None, whole=self.base.tensors[source_name])

    def _add_lora(self, module: LoraModule) -> None:
        side = embedding_side(module.name)
        edit = self._embedding_edit(side) if side else self._edit_of(module.name, "weight")
        transposed = module.is_embedding or _is_conv1d(self.base, module, edit)
        delta = Delta(partial(_load_pair, module.a, module.b), module.scaling, transposed)
        magnitude = self.source.get(module.name, Role.MAGNITUDE)
        self.edits[edit.name] = replace(edit, deltas=(*edit.deltas, delta), magnitude=magnitude)

    def _edit_of(self, module: str, parameter: str) -> Edit:
        name = self.base.find(module, parameter)
        if name is None:
            raise ExportError(
                f"The base model {self.base.directory} has no {module}.{parameter}, which the adapter changes. "
                "Give the model that it was tuned from with --base."
            )
        return self.edits.get(name) or Edit(name, self.base.tensors[name])

    def _add_parameter(self, module: str, role: Role) -> None:
        entry, parameter = self.source.get(module, role), "weight" if role is Role.WHOLE else "bias"
        if entry is None or (parameter == "weight" and embedding_side(module)):
            return
        edit = self._edit_of(module, parameter)
        if role is Role.LORA_BIAS:
            scaling = next(known.scaling for known in self.source.lora_modules if known.name == module)
            edit = replace(edit, deltas=(*edit.deltas, Delta(partial(_load_bias, entry), scaling)))
        else:
            edit = replace(edit, whole=entry)
        self.edits[edit.name] = edit

    def _add_experts(self, layer: ExpertLayer) -> None:
        if layer.prefix is None:
            self._add_fused_experts(layer)
            return
        for expert in range(layer.num_experts):
            for leaf in layer.leaves:
                edit = self._edit_of(f"{layer.prefix}.{expert}.{leaf}", "weight")
                delta = Delta(partial(_load_expert, layer, expert, leaf), layer.module.scaling)
                self.edits[edit.name] = replace(edit, deltas=(*edit.deltas, delta))

    def _add_fused_experts(self, layer: ExpertLayer) -> None:
        fused = layer.module.name.removesuffix(".base_layer")
        edit = self._edit_of(f"{fused}.{'down_proj' if layer.is_down else 'gate_up_proj'}", "")
        transposed = self.base.text_config.get("model_type") in _FUSED_TRANSPOSED
        deltas = tuple(
            Delta(partial(_load_expert, layer, expert, None), layer.module.scaling, transposed)
            for expert in range(layer.num_experts)
        )
        self.edits[edit.name] = replace(edit, deltas=deltas, expert_axis=True)


def edit_config(plan: MergePlan) -> dict[str, Any]:
    """config.json of the whole model."""
    config = dict(plan.base.config)
    holder = config
    if config.get("text_config"):
        holder = config["text_config"] = dict(config["text_config"])
    if plan.vocabulary.size is not None:
        holder["vocab_size"] = plan.vocabulary.size
        if "vocab_size" in config:
            config["vocab_size"] = plan.vocabulary.size
    if plan.unties:
        holder["tie_word_embeddings"] = config["tie_word_embeddings"] = False
    return config


def _refuse_quantised(base: BaseModel) -> None:
    method = (base.config.get("quantization_config") or {}).get("quant_method")
    if method:
        raise ExportError(
            f"The base model {base.directory} is quantised ({method}), and merging needs its weights in 16 or 32 "
            "bits. Give the model it was made from with --base."
        )


def _is_conv1d(base: BaseModel, module: LoraModule, edit: Edit) -> bool:
    shape = edit.start.shape
    if shape[0] == shape[1]:
        return base.is_conv1d and embedding_side(module.name) is None
    return shape == (module.a.shape[1], module.b.shape[0])


def _same_matrix(one: TensorEntry | None, other: TensorEntry | None) -> bool:
    if one is None or other is None:
        return one is other
    return _same_bytes(one, other)


def _same_bytes(one: TensorEntry, other: TensorEntry) -> bool:
    if one == other:
        return True
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    block = 1 << 24
    with one.path.open("rb") as first, other.path.open("rb") as second:
        first.seek(one.begin)
        second.seek(other.begin)
        left = one.end - one.begin
        while left:
            count = min(left, block)
            if first.read(count) != second.read(count):
                return False
            left -= count
    return True


def _load_pair(a: TensorEntry, b: TensorEntry) -> tuple[Array, Array]:
    return read_array(a), read_array(b)


def _load_bias(entry: TensorEntry) -> tuple[Array, Array]:
    """As the product of a 1 x 1 matrix and a column, so that a bias is added as a weight is."""
    import numpy as np

    return np.ones((1, 1), "<f4"), read_array(entry).reshape(-1, 1)


def _load_expert(layer: ExpertLayer, expert: int, leaf: str | None) -> tuple[Array, Array]:
    a = read_array(layer.module.a, expert * layer.rank, (expert + 1) * layer.rank)
    b = layer.b_columns()[:, :, expert]
    return a, b if leaf is None else b[layer.part(leaf, len(b))]
