"""An adapter as PEFT saved it, and the LoRA modules in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.adapter_files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    TensorEntry,
    TensorFile,
    find_nonfinite,
    read_json_object,
    read_tensor_file,
)
from airflow_provider_sft.contract.adapter_layout import Role, embedding_side, parse_tensor_name, scaling_of
from airflow_provider_sft.contract.base_model import BaseModel, find_base
from airflow_provider_sft.contract.errors import ExportError
from airflow_provider_sft.contract.names import ADDED_TOKENS_FILE, NEW_EMBEDDINGS_FILE


@dataclass(frozen=True)
class LoraModule:
    """One module's LoRA. For an embedding, A is rank by vocabulary and B is hidden by rank."""

    name: str
    a: TensorEntry
    b: TensorEntry
    scaling: float  # what multiplies B·A
    is_embedding: bool  # stored as lora_embedding_A and _B

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True)
class Source:
    """An adapter to be exported. `new_embeddings` is there when it has been exported before."""

    directory: Path
    config: dict[str, Any]
    file: TensorFile
    new_embeddings: TensorFile
    base: BaseModel | None
    num_new_tokens: int

    @cached_property
    def by_role(self) -> dict[tuple[str, Role], list[tuple[str, TensorEntry]]]:
        """Module and role → the tensors, with their names: more than one where PEFT saves copies."""
        found: dict[tuple[str, Role], list[tuple[str, TensorEntry]]] = {}
        for name, entry in self.file.tensors.items():
            found.setdefault(parse_tensor_name(name), []).append((name, entry))
        return found

    def get(self, module: str, role: Role) -> TensorEntry | None:
        """The tensor of that role; the one with the plainest name where there are copies."""
        tensors = self.by_role.get((module, role), [])
        return min(tensors, key=lambda named: len(named[0]))[1] if tensors else None

    def modules_with(self, role: Role) -> list[str]:
        return [module for module, found in self.by_role if found is role]

    @cached_property
    def lora_modules(self) -> list[LoraModule]:
        return list(self._read_modules())

    def _read_modules(self) -> Iterator[LoraModule]:
        for role_a, role_b in ((Role.LORA_A, Role.LORA_B), (Role.EMBEDDING_A, Role.EMBEDDING_B)):
            for module in self.modules_with(role_a):
                a, b = self.get(module, role_a), self.get(module, role_b)
                if a is None or b is None or len(a.shape) != 2 or len(b.shape) != 2:  # noqa: PLR2004
                    raise ExportError(
                        f"{self.directory}: {module!r} lacks a whole pair of LoRA matrices. Save the adapter again, "
                        "gathered from all ranks."
                    )
                scaling = scaling_of(self.config, module)
                yield LoraModule(module, a, b, scaling, is_embedding=role_a is Role.EMBEDDING_A)

    def embedding_module(self, side: str) -> str | None:
        """The module that is the input or the output embedding, where the adapter has anything for it."""
        return next((module for module, _ in self.by_role if embedding_side(module) == side), None)


def read_source(directory: Path, *, num_new_tokens: int | None, base_model_dir: Path | None) -> Source:
    """:raises ExportError: no adapter there, or the count of added tokens is missing or wrong"""
    config = read_json_object(directory / ADAPTER_CONFIG_FILE)
    if (kind := config.get("peft_type")) != "LORA":
        raise ExportError(
            f"{directory} holds a {kind} adapter, and vLLM loads LoRA alone. Serve it with PEFT, or tune with LoRA.",
            advice="Drop lora_post_process_for_vllm, or set peft_method to 'lora'.",
        )
    rows_file = directory / NEW_EMBEDDINGS_FILE
    file = read_tensor_file(directory / ADAPTER_WEIGHTS_FILE)
    if (name := find_nonfinite(file.tensors)) is not None:
        raise ExportError(
            f"{directory}: {name} holds NaN or infinity. Tune again, with a lower learning_rate."
        )
    return Source(
        directory=directory,
        config=config,
        file=file,
        new_embeddings=read_tensor_file(rows_file) if rows_file.exists() else TensorFile({}, {}),
        base=find_base(config, base_model_dir),
        num_new_tokens=_count_new_tokens(directory, num_new_tokens),
    )


def _count_new_tokens(directory: Path, given: int | None) -> int:
    path = directory / ADDED_TOKENS_FILE
    recorded = read_json_object(path).get("num_new_tokens") if path.exists() else None
    if given is None and not path.exists():
        raise ExportError(
            f"{path} does not exist. Give the rows by which the vocabulary grew with --num-new-tokens, 0 for none."
        )
    count = recorded if given is None else given
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise ExportError(
            f"{path}: num_new_tokens is {count!r}. Give the rows by which the vocabulary grew, 0 for none."
        )
    if recorded is not None and recorded != count:
        raise ExportError(
            f"{path} says {recorded!r} new tokens and --num-new-tokens {count}. Correct the one that is wrong."
        )
    return count
