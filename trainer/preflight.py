"""What can be known before the model loads: whether what the config asks for is there, and whether there is room.

No torch: the parent asks.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from airflow_provider_sft.contract.base_model import find_base
from airflow_provider_sft.contract.errors import (
    ConfigError,
    ExportError,
    MemoryExhaustedError,
    StorageFullError,
)
from airflow_provider_sft.contract.estimate import Estimate, describe_bytes, estimate_run
from airflow_provider_sft.contract.export_request import find_base_obstacle
from airflow_provider_sft.contract.extras import find_missing_extras
from airflow_provider_sft.contract.settings import Settings
from trainer.cgroup import memory_limit_bytes
from trainer.controller.file import read_controller_plan
from trainer.paths import check_places
from trainer.tracker_settings import find_tracker_mistakes


def check_request(settings: Settings, environ: Mapping[str, str]) -> None:
    """Prove that paths, optional packages, trackers and the trainer controller's file are as the config needs them.

    :raises ConfigError: with every mistake, a line each
    :raises AccessDeniedError: as `check_places`
    """
    values = settings.values
    check_places(values, environ)
    mistakes = [*find_missing_extras(values), *find_tracker_mistakes(values, environ)]
    if mistakes:
        raise ConfigError("\n".join(dict.fromkeys(mistakes)))
    if file := values.get("trainer_controller_config_file"):
        evaluates = bool(values.get("validation_data_path") or values.get("data_config_path"))
        read_controller_plan(Path(file), evaluates=evaluates)


def check_export(settings: Settings) -> None:
    """Prove that some release of vLLM can take the adapter, where the base model's config.json is at hand.

    :raises ExportError: none can
    """
    values = settings.values
    revision = (values.get("model_init_kwargs") or {}).get("revision")
    base = find_base({"base_model_name_or_path": values["model_name_or_path"], "revision": revision})
    if base is not None and (obstacle := find_base_obstacle(dict(values), base)):
        raise ExportError(obstacle)


def check_room(
    settings: Settings,
    output_dir: Path,
    *,
    gpus: int,
    warn: Callable[[str], None],
    memory_bytes: int | None = None,
) -> None:
    """Compare the estimate with the free space in output_dir and the container's memory limit.

    What may not be enough is warned of; nothing is said where the model's size is not known.

    :param output_dir: prepared; what the run has left there already counts as free
    :param memory_bytes: None asks the container, then the host
    :raises StorageFullError: a single checkpoint and the final model cannot fit
    :raises MemoryExhaustedError: weights, gradients and optimiser cannot fit
    """
    estimate = estimate_run(settings.values, gpus=gpus)
    if estimate is None or settings.values.get("do_dataprocessing_only"):
        return
    _check_model_dir(estimate, settings.values.get("save_model_dir"), output_dir)
    for sentence in (*_check_storage(estimate, output_dir), *_check_memory(estimate, memory_bytes)):
        warn(sentence)


def _check_storage(estimate: Estimate, output_dir: Path) -> Iterator[str]:
    free = shutil.disk_usage(output_dir).free + _size_of_earlier_attempts(output_dir)
    has = f"output_dir {output_dir} has room for {describe_bytes(free)}"
    if free < estimate.storage_floor.size_bytes:
        raise StorageFullError(
            f"{has} and needs at least {estimate.storage_floor}, so this run cannot fit. Give it a larger volume."
        )
    if free < estimate.storage.size_bytes:
        yield f"{has} and needs at least {estimate.storage}. Lower save_total_limit, or give it a larger volume."
    elif estimate.kept is None:
        checkpoint = describe_bytes(estimate.checkpoint.size_bytes)
        yield f"{has}, a checkpoint is {checkpoint}, and save_total_limit is not set: all checkpoints are kept."


def _check_model_dir(estimate: Estimate, model_dir: str | None, output_dir: Path) -> None:
    """On a volume of its own, save_model_dir needs room for the tuned model."""
    if not model_dir or Path(model_dir).stat().st_dev == output_dir.stat().st_dev:
        return
    free = shutil.disk_usage(model_dir).free + _size_of_earlier_attempts(Path(model_dir))
    if free < estimate.final.size_bytes:
        raise StorageFullError(
            f"save_model_dir {model_dir} has room for {describe_bytes(free)}, and the tuned model needs at least "
            f"{estimate.final}. Give it a larger volume."
        )


def _check_memory(estimate: Estimate, memory_bytes: int | None) -> Iterator[str]:
    limit = memory_bytes or memory_limit_bytes() or _host_memory_bytes()
    if limit is None:
        return
    has = f"This container's memory is {describe_bytes(limit)}"
    if limit < estimate.host.size_bytes:
        raise MemoryExhaustedError(f"{has}, the run needs at least {estimate.host}: it cannot fit.")
    rows = 0 if estimate.device.size_bytes else estimate.activations.size_bytes
    if limit < estimate.host.size_bytes + rows:
        yield (
            f"{has}, the run needs at least {describe_bytes(estimate.host.size_bytes)}, and rows of max_length tokens "
            f"roughly {describe_bytes(rows)} more. Lower per_device_train_batch_size or max_length if it runs out."
        )


def _size_of_earlier_attempts(output_dir: Path) -> int:
    """Checkpoints and model files of this run, which the estimate counts and which are there already."""
    files = [path for pattern in ("checkpoint-*/**/*", "*.safetensors") for path in output_dir.glob(pattern)]
    return sum(path.stat().st_size for path in files if path.is_file())


def _host_memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
