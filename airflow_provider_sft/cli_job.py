"""`sft-config job FILE --engine ENGINE`: the manifests that SFTJobOperator would send, as YAML. It imports Airflow when it runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from airflow_provider_sft.cli_pod import add_pod_options, print_manifests, read_pod_options

if TYPE_CHECKING:
    from kubernetes.client import V1Pod

_TEXT = "Print the job that SFTJobOperator would send for a config, as YAML for kubectl apply -f -."
_NAMES = ("auto", "job", "pytorchjob", "jobset", "trainjob")


def add_job_parser(subparsers: Any) -> None:
    """:param subparsers: what `ArgumentParser.add_subparsers` gave; the parsed arguments' `command` is the command"""
    parser = subparsers.add_parser("job", help=_TEXT, description=_TEXT)
    add_pod_options(parser)
    parser.add_argument(
        "--engine",
        choices=_NAMES,
        default="auto",
        help="auto, the default: job for one node, trainjob for more, as on a cluster that serves all",
    )
    parser.add_argument("--num-nodes", type=int, default=1, help="pods of --gpus each")
    parser.add_argument(
        "--max-restarts",
        type=int,
        help="by the engine, from the newest checkpoint",
        default=argparse.SUPPRESS,
    )
    parser.set_defaults(command=_run_job)


def _run_job(options: argparse.Namespace) -> int:
    parameters = read_pod_options(options)

    def build() -> tuple[Any, V1Pod, list[dict[str, Any]]]:
        from airflow_provider_sft.engines.registry import ENGINES, choose_engine
        from airflow_provider_sft.operators import SFTJobOperator

        operator = SFTJobOperator(**parameters)
        operator.config_as_file = options.config_map
        engine = choose_engine(options.engine, num_nodes=operator.nodes_wanted, served=ENGINES)
        pod = operator.build_pod_request_obj(dry_run=True)
        return operator, pod, operator.build_manifests(engine, pod)

    return print_manifests(build)
