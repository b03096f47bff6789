"""A whole model in Hugging Face's layout, the base's own shards one after the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from airflow_provider_sft.contract.adapter_files import read_tensor_file
from airflow_provider_sft.contract.base_model import INDEX_FILE
from trainer.export.edits import apply_edit
from trainer.export.merge import MergePlan, edit_config
from trainer.export.tensor_writer import copy_file, write_bytes, write_tensor_file
from trainer.export.tensors import OutTensor, keep_tensor

# What a directory needs beside its weights to be served: tokenizer, templates, generation defaults.
_COMPANIONS = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.jinja",
    "chat_template.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
_OF_THE_BASE = ("*.py", "LICENSE*")


def write_model(plan: MergePlan, target: Path) -> None:
    """Write into an empty directory; the tuned tokenizer takes the place of the base's."""
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for index, path in enumerate(plan.base.weight_files):
        tensors = list(_edited_tensors(plan, path, with_added=index == 0))
        write_tensor_file(target / path.name, tensors, read_tensor_file(path).metadata or {"format": "pt"})
        weight_map |= {tensor.name: path.name for tensor in tensors}
        total_bytes += sum(tensor.size_bytes for tensor in tensors)
    if len(plan.base.weight_files) > 1:
        index_json = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        write_bytes(target / INDEX_FILE, _encode(index_json))
    write_bytes(target / "config.json", _encode(edit_config(plan)))
    copy_companions(plan.base.directory, target, also=_OF_THE_BASE)
    copy_companions(plan.source.directory, target)


def copy_companions(source: Path, target: Path, *, also: tuple[str, ...] = ()) -> None:
    for pattern in (*_COMPANIONS, *also):
        for path in sorted(source.glob(pattern)):
            if path.is_file():
                (target / path.name).unlink(missing_ok=True)
                copy_file(path, target / path.name)


def _edited_tensors(plan: MergePlan, path: Path, *, with_added: bool) -> Iterator[OutTensor]:
    for name, entry in read_tensor_file(path).tensors.items():
        if name in plan.edits:
            yield apply_edit(plan.edits[name])
        elif name != plan.dropped:
            yield keep_tensor(name, entry)
    if with_added:
        yield from (apply_edit(edit) for name, edit in plan.edits.items() if name not in plan.base.tensors)


def _encode(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
