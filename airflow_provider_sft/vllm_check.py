"""`sft-config vllm-check DIR [--vllm X.Y] [--base DIR]`: how each vLLM release takes an adapter."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.exit_codes import ExitCode
from airflow_provider_sft.contract.outcome import VllmVerdict
from airflow_provider_sft.contract.vllm_releases import RANGES, find_range, version_key

_TEXT = "Say how each vLLM release takes an adapter: loads right, loads wrong, or rejected."


def add_vllm_check_parser(subparsers: Any) -> None:
    """:param subparsers: what `ArgumentParser.add_subparsers` gave; the parsed arguments' `command` is the command"""
    parser = subparsers.add_parser("vllm-check", help=_TEXT, description=_TEXT)
    parser.add_argument("directory", type=Path, metavar="DIR", help="holds adapter_config.json")
    parser.add_argument("--vllm", metavar="X.Y", help="one release; left out, all that were measured")
    parser.add_argument(
        "--base", type=Path, metavar="DIR", help="the served model, where the adapter does not say"
    )
    parser.set_defaults(command=run_vllm_check)


def run_vllm_check(arguments: argparse.Namespace) -> int:
    """0 when the adapter loads right in all the releases asked for, else 69.

    :raises SFTError: no adapter there, or a release that was not measured
    """
    from airflow_provider_sft.contract.vllm import describe_verdict, judge_adapter

    verdicts = judge_adapter(arguments.directory, base=arguments.base)
    if arguments.vllm:
        verdicts = [_of_release(verdicts, arguments.vllm)]
        sys.stdout.write(_say_if_newer(arguments.vllm))
    sys.stdout.write("".join(f"{describe_verdict(verdict)}\n" for verdict in verdicts))
    right = all(verdict["verdict"] == "loads_right" for verdict in verdicts)
    return int(ExitCode.SUCCEEDED if right else ExitCode.EXPORT)


def _of_release(verdicts: list[VllmVerdict], version: str) -> VllmVerdict:
    start = find_range(version).start
    return next(
        verdict
        for verdict in reversed(verdicts)
        if version_key(verdict["releases"].partition("-")[0]) <= start
    )


def _say_if_newer(version: str) -> str:
    newest = RANGES[-1].last
    if version_key(version)[:2] <= version_key(newest):
        return ""
    return (
        f"vLLM {version} is newer than {newest}, the newest that was measured, and is taken to be like it.\n"
    )
