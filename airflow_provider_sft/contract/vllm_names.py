"""Whether an adapter's names and shapes are those of the base model that vLLM serves, by the tensors' headers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from airflow_provider_sft.contract.adapter_files import is_nonzero
from airflow_provider_sft.contract.adapter_layout import Role, embedding_side, parse_tensor_name, rank_of
from airflow_provider_sft.contract.base_model import BaseModel, has_root
from airflow_provider_sft.contract.vllm_adapter import Adapter, Finding, is_fused_experts
from airflow_provider_sft.contract.vllm_releases import NEW_CHECKPOINT_NAMES, TEXT_NAMES

_PEFT_PREFIX = "base_model.model."
_PARTNERS = {
    Role.LORA_A: Role.LORA_B,
    Role.LORA_B: Role.LORA_A,
    Role.EMBEDDING_A: Role.EMBEDDING_B,
    Role.EMBEDDING_B: Role.EMBEDDING_A,
}
_EXPERT = re.compile(r"^(.*\.experts)\.\d+\.\w+$")
_MATRIX = 2  # axes
_ROTARY = ("q_proj", "k_proj")
_TOWER = re.compile(r"(^|\.)(vision|visual|audio|multi_modal)\w*\.")


class _Pair(NamedTuple):
    module: str
    a: tuple[int, ...]
    b: tuple[int, ...]
    is_embedding: bool


def check_pairs(adapter: Adapter) -> Iterator[Finding]:
    """What is wrong with the adapter whatever the base."""
    parsed = {parse_tensor_name(name): name for name in adapter.tensors}
    for (module, role), name in parsed.items():
        if role in _PARTNERS and (module, _PARTNERS[role]) not in parsed:
            yield Finding("rejected", f"{name} has no {_PARTNERS[role].value} beside it.")
        if role in _PARTNERS and not name.startswith(_PEFT_PREFIX):
            yield Finding(
                "loads_wrong", f"vLLM does not apply {name!r}, which does not begin with {_PEFT_PREFIX!r}."
            )
        if role in _PARTNERS and re.search(
            r"\.lora_(?:embedding_)?[AB]\.(?!weight$)|\.lora_embedding_[AB]\.", name
        ):
            yield Finding("rejected", f"{name!r} holds the name of an adapter, which vLLM does not know.")
    for pair in _pairs(adapter):
        rank = rank_of(adapter.config, pair.module)
        stacked = pair.a[0] % rank == 0 if _is_stacked(adapter, pair) else pair.a[0] == rank
        if not stacked or pair.a[0] != pair.b[1]:
            reason = (
                f"{pair.module} has rank {pair.a[0]} in its tensors, and adapter_config.json says {rank}."
            )
            yield Finding("loads_wrong" if pair.a[0] == pair.b[1] else "rejected", reason)


def check_numbers(adapter: Adapter) -> Iterator[Finding]:
    if adapter.nonfinite is not None:
        yield Finding("loads_wrong", f"{adapter.nonfinite} holds NaN or infinity.")


def check_base(adapter: Adapter) -> Iterator[Finding]:
    """Names and shapes against the base model's tensors, where they are there."""
    base = adapter.base
    if base is None:
        return
    pairs = [pair for pair in _pairs(adapter) if not is_fused_experts(pair.module)]
    yield from _check_rotary(base, pairs)
    yield from _check_towers(adapter)
    if not base.shapes or base.is_quantised:
        return
    leaves = {name.rpartition(".")[0].rpartition(".")[2] for name in base.shapes}
    for pair in pairs:
        if embedding_side(pair.module):
            yield from _check_hidden(base, pair)
        elif not _is_expert_of_fused(base, pair.module):
            yield from _check_module(base, pair, leaves)


def _check_module(base: BaseModel, pair: _Pair, leaves: set[str]) -> Iterator[Finding]:
    module = pair.module
    on_disk = base.find(module)
    if on_disk is None:
        reason = f"The base model {base.directory} has no {module}."
        yield Finding("loads_wrong" if module.rpartition(".")[2] in leaves else "rejected", reason)
        return
    shape = base.shapes[on_disk]
    wanted = (pair.b[0], pair.a[-1])
    if len(shape) == _MATRIX and shape != (wanted[::-1] if base.is_conv1d else wanted):
        yield Finding(
            "rejected",
            f"{module} is {shape} in the base model {base.directory}, and {wanted} in the adapter.",
        )
    yield from _check_name(base, module, on_disk.removesuffix(".weight"))


def _check_name(base: BaseModel, module: str, on_disk: str) -> Iterator[Finding]:
    if module == on_disk:
        return
    reason = f"vLLM does not apply {module}: {base.architecture} calls it {on_disk}."
    if ".block_sparse_moe." in on_disk and ".mlp." in module:
        yield Finding("loads_wrong", reason)
    elif base.is_multimodal and "language_model." in on_disk:
        text_only = "language_model." not in module
        yield Finding("loads_wrong", reason, until=TEXT_NAMES if text_only else NEW_CHECKPOINT_NAMES)
    elif has_root(on_disk) and not has_root(module):
        yield Finding("loads_wrong", reason)


def _check_hidden(base: BaseModel, pair: _Pair) -> Iterator[Finding]:
    name = base.embedding_name("input")
    hidden = pair.b[0] if pair.is_embedding else pair.a[-1]
    if name is not None and len(base.shapes[name]) == _MATRIX and base.shapes[name][1] != hidden:
        reason = f"{pair.module} is {base.shapes[name][1]} wide in the base model {base.directory}, and {hidden} in the adapter."
        yield Finding("rejected", reason)


def _check_rotary(base: BaseModel, pairs: list[_Pair]) -> Iterator[Finding]:
    """VLLM permutes the rows of these weights when it loads Llama 4, and the rows of B in no release."""
    if base.text_config.get("model_type") not in ("llama4", "llama4_text"):
        return
    if any(pair.module.endswith(_ROTARY) and "vision" not in pair.module for pair in pairs):
        yield Finding(
            "loads_wrong",
            "vLLM puts the rows of Llama 4's q_proj and k_proj in another order, and the LoRA's not.",
        )


def _check_towers(adapter: Adapter) -> Iterator[Finding]:
    """By default vLLM applies LoRA to the language model only; one whose B is zero does nothing anyway."""
    for name, entry in adapter.tensors.items():
        module, role = parse_tensor_name(name)
        if role is Role.LORA_B and _TOWER.search(module) and is_nonzero(entry):
            yield Finding("loads_wrong", f"vLLM ignores LoRA outside the language model ({module}).")
            return


def _is_expert_of_fused(base: BaseModel, module: str) -> bool:
    """An expert's own LoRA, for a base that holds the experts fused."""
    match = _EXPERT.match(module)
    return match is not None and base.find(match[1], "gate_up_proj") is not None


def _is_stacked(adapter: Adapter, pair: _Pair) -> bool:
    """Whether A holds a rank for each expert."""
    return is_fused_experts(pair.module) or bool(adapter.config.get("target_parameters"))


def _pairs(adapter: Adapter) -> Iterator[_Pair]:
    shapes = {parse_tensor_name(name): entry.shape for name, entry in adapter.tensors.items()}
    for role in (Role.LORA_A, Role.EMBEDDING_A):
        for (module, found), a in shapes.items():
            if found is role and (b := shapes.get((module, _PARTNERS[role]))) is not None:
                yield _Pair(module, a, b, role is Role.EMBEDDING_A)
