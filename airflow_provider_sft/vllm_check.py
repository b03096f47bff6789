"""`sft-config vllm-check DIR [--vllm X.Y] [--base DIR] [--table FILE]`: how each vLLM release takes an adapter."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.exit_codes import ExitCode
from airflow_provider_sft.contract.vllm_releases import use_table

_TEXT = "Say how each vLLM release takes an adapter: loads right, loads wrong, or rejected."


def add_vllm_check_parser(subparsers: Any) -> None:
    """:param subparsers: what `ArgumentParser.add_subparsers` gave; the parsed arguments' `command` is the command"""
    parser = subparsers.add_parser("vllm-check", help=_TEXT, description=_TEXT)
    parser.add_argument("directory", type=Path, metavar="DIR", help="holds adapter_config.json")
    parser.add_argument("--vllm", metavar="X.Y", help="one release; left out, all that were measured")
    parser.add_argument(
        "--base", type=Path, metavar="DIR", help="the served model, where the adapter does not say"
    )
    parser.add_argument(
        "--table", type=Path, metavar="FILE", help="further releases, as $SFT_VLLM_TABLE (docs/vllm.md)"
    )
    parser.add_argument(
        "--allow-unmeasured", action="store_true", help="exit 0 for a release that was not measured"
    )
    parser.set_defaults(command=run_vllm_check)


def run_vllm_check(arguments: argparse.Namespace) -> int:
    """0 when the adapter loads right in all the releases asked for, else 69.

    :raises SFTError: no adapter there, or a release older than those measured
    """
    from airflow_provider_sft.contract.vllm import describe_verdict, judge, read_adapter

    if arguments.table is not None:
        use_table(arguments.table)
    adapter = read_adapter(arguments.directory, base=arguments.base)
    verdicts = judge(adapter, release=arguments.vllm)
    sys.stdout.write("".join(f"{describe_verdict(verdict)}\n" for verdict in verdicts))
    if adapter.base is None:
        name = adapter.config.get("base_model_name_or_path")
        sys.stderr.write(
            f"The base model {name!r} was not found, neither as a directory nor in the Hub's cache, "
            "so this is a guess. Give its directory with --base.\n"
        )
        return int(ExitCode.EXPORT)
    accepted = {"loads_right", *(["not_measured"] if arguments.allow_unmeasured else [])}
    right = {verdict["verdict"] for verdict in verdicts} <= accepted
    return int(ExitCode.SUCCEEDED if right else ExitCode.EXPORT)
