"""`sft-config estimate FILE`: what a run needs at least, and whether it cannot fit."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from airflow_provider_sft.contract.errors import ConfigError
from airflow_provider_sft.contract.exit_codes import ExitCode
from airflow_provider_sft.contract.plain_text import plain_text

if TYPE_CHECKING:
    from airflow_provider_sft.contract.estimate import Estimate

_TEXT = "Say how much memory and storage a run needs at least, and what cannot fit."
_UNITS = {
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "B": 10**9,
}


def add_estimate_parser(subparsers: Any) -> None:
    """:param subparsers: what `ArgumentParser.add_subparsers` gave; the parsed arguments' `command` is the command"""
    parser = subparsers.add_parser("estimate", help=_TEXT, description=_TEXT)
    parser.add_argument("file", metavar="FILE", help="a JSON file, or - for standard input")
    parser.add_argument("--gpus", type=int, default=0, metavar="N", help="over all nodes; left out, on CPU")
    parser.add_argument("--gpu-memory", type=_quantity, metavar="SIZE", help="of one GPU, as in 80Gi")
    parser.add_argument("--memory", type=_quantity, metavar="SIZE", help="the container's limit, as in 200Gi")
    parser.add_argument("--storage", type=_quantity, metavar="SIZE", help="room in output_dir, as in 1Ti")
    parser.add_argument(
        "--model-parameters",
        type=_quantity,
        metavar="COUNT",
        help="as in 13e9 or 13B, where the model's files cannot be read from here",
    )
    parser.set_defaults(command=run_estimate)


def run_estimate(options: argparse.Namespace) -> int:
    """0, or 202 or 201 when memory or storage cannot be enough.

    :raises SFTError: a wrong config, or a model of unknown size
    """
    from airflow_provider_sft.cli import read_config_argument
    from airflow_provider_sft.contract.estimate import estimate_run
    from airflow_provider_sft.contract.settings import resolve_config

    settings = resolve_config(read_config_argument(options.file))
    estimate = estimate_run(settings.values, gpus=options.gpus, model_parameters=options.model_parameters)
    if estimate is None:
        raise ConfigError(
            f"The size of {settings.values['model_name_or_path']!r} is not known here: its files cannot be read and its "
            f"name says none. Add --model-parameters, for example --model-parameters 13B."
        )
    sys.stdout.write("".join(f"{plain_text(line)}\n" for line in _describe(estimate, options)))
    code = ExitCode.SUCCEEDED
    for kind, sentence in _find_lacks(estimate, options):
        sys.stdout.write(f"{plain_text(sentence)}\n")
        code = kind
    return int(code)


def _describe(estimate: Estimate, options: argparse.Namespace) -> Iterator[str]:
    yield f"Parameters: {estimate.model.parameters:,}, from {estimate.model.source}; {estimate.trained:,} are trained."
    if options.gpus:
        yield f"Each GPU needs at least {estimate.device}."
    where = "each GPU" if options.gpus else "the container"
    yield f"Rows of max_length tokens would take roughly this much more of {where}: {estimate.activations}."
    yield f"The container's memory needs at least {estimate.host}."
    yield f"One checkpoint is {estimate.checkpoint}."
    yield f"output_dir needs at least {estimate.storage}."
    if estimate.kept is None:
        yield "save_total_limit is not set: each further checkpoint adds as much."
    if estimate.download.size_bytes:
        yield f"The container's own storage needs at least {estimate.download}."


def _find_lacks(estimate: Estimate, options: argparse.Namespace) -> Iterator[tuple[ExitCode, str]]:
    from airflow_provider_sft.contract.estimate import describe_bytes

    memory, storage = ExitCode.OUT_OF_MEMORY, ExitCode.STORAGE_FULL
    checks = (
        (storage, "output_dir", options.storage, estimate.storage_floor.size_bytes),
        (memory, "The container's memory", options.memory, estimate.host.size_bytes),
        (memory, "A GPU", options.gpu_memory if options.gpus else None, estimate.device.size_bytes),
    )
    for kind, name, given, needed in checks:
        if given is not None and given < needed:
            has, needs = describe_bytes(given), describe_bytes(needed)
            yield kind, f"It cannot fit: {name} has {has} and needs at least {needs}."


def _quantity(text: str) -> float:
    for unit, factor in _UNITS.items():
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text)
