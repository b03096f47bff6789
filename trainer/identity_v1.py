"""The identity as records without a version have it: four digests, files over 64 MiB sampled. Never to be changed.

A directory with such a record is judged by it, so that an upgrade breaks no retry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.data.files import DataSource, LocatedData
from trainer.data.plan import DatasetSpec
from trainer.files import digest_json, sha256_file
from trainer.identity import Difference

_BLOCK_BYTES = 1 << 20
_WHOLE_FILE_BYTES = 64 * _BLOCK_BYTES
_SAMPLED_BLOCKS = 64
_NO_IDENTITY = frozenset(
    {"overwrite", "hang_timeout_s", "resume_from_checkpoint", "report", "generate_samples", "log_level"}
)
_NAMES = {"config_sha256": "its config", "data_sha256": "its data", "base_model_sha256": "its base model"}


def find_v1_differences(
    record: Mapping[str, Any], config: Mapping[str, Any], located: LocatedData
) -> list[Difference]:
    """:param config: as the user wrote it"""
    now = {
        "config_sha256": digest_json({key: config[key] for key in config.keys() - _NO_IDENTITY}),
        "data_sha256": _digest_data(located),
        "base_model_sha256": _digest_model(str(config["model_name_or_path"])),
    }
    return [
        Difference(name, f"{name} is another")
        for field, name in _NAMES.items()
        if record.get(field) != now[field]
    ]


def _digest_data(located: LocatedData) -> str:
    plan = located.plan
    mixed = {
        "datasets": [_spec(spec) for spec in plan.datasets],
        "streaming": plan.streaming,
        "stopping_strategy": plan.stopping_strategy,
        "seed": plan.seed,
        "chat_template": plan.chat_template,
    }
    return digest_json([mixed, *(_digest_source(source) for source in located.sources)])


def _spec(spec: DatasetSpec) -> dict[str, Any]:
    handlers = spec.handlers
    return {
        "name": spec.name,
        "train": spec.train,
        "validation": spec.validation,
        "sampling": spec.sampling,
        "builder": spec.builder,
        "split_name": spec.split_name,
        "shuffle": spec.shuffle,
        "handlers": None
        if handlers is None
        else [{"name": each.name, "arguments": each.arguments} for each in handlers],
    }


def _digest_source(source: DataSource) -> str:
    return digest_json([source.hub_id, *(_sample_file(path) for path in source.files)])


def _digest_model(name_or_path: str) -> str:
    directory = Path(name_or_path)
    if not directory.is_dir():
        return digest_json(name_or_path)
    files = sorted(path for path in directory.iterdir() if path.suffix in (".json", ".safetensors", ".model"))
    return digest_json({path.name: _sample_file(path) for path in files})


def _sample_file(path: Path) -> str:
    size_bytes = path.stat().st_size
    if size_bytes <= _WHOLE_FILE_BYTES:
        return sha256_file(path)
    digest = hashlib.sha256(str(size_bytes).encode())
    with path.open("rb") as file:
        for index in range(_SAMPLED_BLOCKS):
            file.seek((size_bytes - _BLOCK_BYTES) * index // (_SAMPLED_BLOCKS - 1))
            digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()
