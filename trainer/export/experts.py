"""Mixture-of-experts layers: transformers keeps them fused in memory, checkpoints and vLLM an expert each.

PEFT stores the LoRA of `gate_up_proj` as `experts.base_layer` and that of `down_proj` as `experts`. A is
(experts x rank, in); B is (out, rank x experts), the expert varying fastest. Splitting is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from airflow_provider_sft.contract.adapter_layout import parameter_of, rank_of
from airflow_provider_sft.contract.vllm_adapter import is_fused_experts
from trainer.export.building import add_zero_rows, computed, rearranged, widen_columns
from trainer.export.numbers import Array, read_array
from trainer.export.source import LoraModule, Source
from trainer.export.tensors import OutTensor, slice_rows

_GATE_UP_DOWN = (("w1", "w3", "w2"), ("gate_proj", "up_proj", "down_proj"))


@dataclass(frozen=True)
class ExpertLayer:
    """The experts of one fused module. They are exported apart where `prefix` says so."""

    module: LoraModule
    num_experts: int
    prefix: str | None  # model.layers.0.block_sparse_moe.experts
    leaves: tuple[str, ...]  # the matrices of an expert that this module's LoRA is for, in order
    is_down: bool
    zeros: tuple[str, ...] = ()  # the other matrices, where no LoRA is on them: vLLM wants one for each

    @property
    def lacks_other(self) -> bool:
        return bool(self.zeros)

    def zero_shapes(self, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of A and B of one matrix without LoRA: one of gate and up, or down."""
        out, width = self.module.b.shape[0], self.module.a.shape[1]
        wide, narrow = (out, width) if self.is_down else (width, out // 2)
        return ((rank, wide), (narrow, rank)) if self.is_down else ((rank, narrow), (wide, rank))

    @property
    def rank(self) -> int:
        return self.module.a.shape[0] // self.num_experts

    def b_columns(self) -> Array:
        """(out, rank, experts)"""
        return read_array(self.module.b).reshape(-1, self.rank, self.num_experts)

    def part(self, leaf: str, rows: int) -> slice:
        """The rows of an expert's fused matrix that are this leaf's."""
        index, count = self.leaves.index(leaf), len(self.leaves)
        return slice(index * rows // count, (index + 1) * rows // count)


def plain_modules(source: Source) -> list[LoraModule]:
    """The LoRA modules that are not fused experts."""
    return [module for module in source.lora_modules if not is_fused_experts(module.name)]


def expert_layers(source: Source) -> list[ExpertLayer]:
    fused = [module for module in source.lora_modules if is_fused_experts(module.name)]
    return [_expert_layer(source, module, {other.name for other in fused}) for module in fused]


def _expert_layer(source: Source, module: LoraModule, fused: set[str]) -> ExpertLayer:
    num_experts = max(module.a.shape[0] // rank_of(source.config, module.name), 1)
    name, parameter = module.name.removesuffix(".base_layer"), parameter_of(source.config, module.name)
    is_down, is_alone = parameter == "down_proj", not {name, f"{name}.base_layer"} <= fused
    prefix, (gate, up, down) = _apart(source, name)
    leaves, others = ((down,), (gate, up)) if is_down else ((gate, up), (down,))
    zeros = others if is_alone and parameter in ("gate_up_proj", "down_proj") else ()
    return ExpertLayer(module, num_experts, prefix, leaves, is_down, zeros)


def _apart(source: Source, fused: str) -> tuple[str | None, tuple[str, str, str]]:
    """Where each expert's own matrices are, and their names; no place for experts that vLLM keeps fused."""
    for prefix in (fused, fused.replace(".mlp.", ".block_sparse_moe.")):
        for gate, up, down in _GATE_UP_DOWN:
            on_disk = source.base.find(f"{prefix}.0.{gate}") if source.base else None
            if on_disk is not None:
                return on_disk.removesuffix(f".0.{gate}.weight"), (gate, up, down)
    return None, _GATE_UP_DOWN[1]


def write_experts(layer: ExpertLayer, *, rank: int, scaling: float) -> Iterator[OutTensor]:
    """A LoRA for each expert, named as its checkpoint and vLLM name it; the fused one where they stay fused."""
    factor = layer.module.scaling / scaling
    if layer.prefix is None:
        yield from _fused_tensors(layer, rank - layer.rank, factor)
        if layer.lacks_other:
            yield from _fused_zeros(layer, rank)
        return
    for expert in range(layer.num_experts):
        for leaf in layer.leaves:
            yield from _expert_tensors(layer, expert, leaf, rank - layer.rank, factor)
        for leaf in layer.zeros:
            name = f"base_model.model.{layer.prefix}.{expert}.{leaf}"
            yield from _zeros(name, *layer.zero_shapes(rank), layer.module)


def _zeros(name: str, a: tuple[int, int], b: tuple[int, int], like: LoraModule) -> Iterator[OutTensor]:
    import numpy as np

    yield rearranged(f"{name}.lora_A.weight", like.a.dtype, a, lambda: np.zeros(a, np.float32))
    yield rearranged(f"{name}.lora_B.weight", like.b.dtype, b, lambda: np.zeros(b, np.float32))


def _fused_zeros(layer: ExpertLayer, rank: int) -> Iterator[OutTensor]:
    fused = f"base_model.model.{layer.module.name}"
    (_, wide), (narrow, _) = layer.zero_shapes(rank)
    stacked, rows = layer.num_experts * rank, narrow * len(layer.zeros)
    name = f"{fused}.base_layer" if layer.is_down else fused
    yield from _zeros(name, (stacked, wide), (rows, stacked), layer.module)


def _expert_tensors(
    layer: ExpertLayer, expert: int, leaf: str, missing: int, factor: float
) -> Iterator[OutTensor]:
    name = f"base_model.model.{layer.prefix}.{expert}.{leaf}"
    rows = slice_rows(layer.module.a, expert * layer.rank, (expert + 1) * layer.rank)
    yield add_zero_rows(f"{name}.lora_A.weight", rows, missing)
    make = partial(_expert_b, layer, expert, leaf, missing)
    if math.isclose(factor, 1, rel_tol=1e-12):
        shape = (layer.module.b.shape[0] // len(layer.leaves), layer.rank + missing)
        yield rearranged(f"{name}.lora_B.weight", layer.module.b.dtype, shape, make)
    else:
        yield computed(f"{name}.lora_B.weight", make() * factor, layer.module.b.dtype)


def _expert_b(layer: ExpertLayer, expert: int, leaf: str, missing: int) -> Array:
    matrix = layer.b_columns()[:, :, expert]
    return widen_columns(matrix[layer.part(leaf, len(matrix))], missing)


def _fused_tensors(layer: ExpertLayer, missing: int, factor: float) -> Iterator[OutTensor]:
    import numpy as np

    module, name = layer.module, f"base_model.model.{layer.module.name}"
    if layer.lacks_other and not layer.is_down:
        name += ".base_layer"  # as PEFT names it where down_proj carries LoRA too
    if not missing and math.isclose(factor, 1, rel_tol=1e-12):
        yield add_zero_rows(f"{name}.lora_A.weight", module.a, 0)
        yield add_zero_rows(f"{name}.lora_B.weight", module.b, 0)
        return
    apart = read_array(module.a).reshape(layer.num_experts, layer.rank, -1)
    a = np.pad(apart, ((0, 0), (0, missing), (0, 0))).reshape(-1, module.a.shape[1])
    b = np.pad(layer.b_columns() * factor, ((0, 0), (0, missing), (0, 0)))
    yield computed(f"{name}.lora_A.weight", a, module.a.dtype)
    yield computed(f"{name}.lora_B.weight", b.reshape(len(b), -1), module.b.dtype)
