"""`sft-config job FILE --engine ENGINE`: the manifests that SFTJobOperator would send, as YAML. It imports Airflow when it runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from airflow_provider_sft.cli_pod import print_manifests
from airflow_provider_sft.cli_pod_options import add_pod_options, read_pod_options

if TYPE_CHECKING:
    from kubernetes.client import V1Pod

_TEXT = "Print the job that SFTJobOperator would send for a config, as YAML for kubectl apply -f -."
_NOT_PARAMETERS = ("required_topology", "preferred_topology", "older_jobset")
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
    parser.add_argument(
        "--keep-finished",
        type=int,
        dest="keep_finished_seconds",
        metavar="SECONDS",
        help="how long a finished job stays for reading",
        default=argparse.SUPPRESS,
    )
    _add_cluster_options(parser)
    parser.set_defaults(command=_run_job)


def _add_cluster_options(parser: argparse.ArgumentParser) -> None:
    for word, text in (("required", "all nodes under one"), ("preferred", "likewise, where there is room")):
        parser.add_argument(
            f"--{word}-topology",
            metavar="LABEL",
            help=f"{text}, as Kueue's Topology names it: cloud.provider.com/topology-rack",
        )
    parser.add_argument(
        "--older-jobset",
        action="store_true",
        help="for JobSet before 0.10 and Kubeflow Trainer 2.0: a lost node counts as one of --max-restarts",
    )


def _run_job(options: argparse.Namespace) -> int:
    parameters = read_pod_options(options, others=_NOT_PARAMETERS)
    parameters["annotations"] |= _topology(options)

    def build() -> tuple[Any, V1Pod, list[dict[str, Any]]]:
        from airflow_provider_sft.engines.older_jobset import fit_older_jobset
        from airflow_provider_sft.engines.registry import ENGINES, choose_engine
        from airflow_provider_sft.operators import SFTJobOperator

        operator = SFTJobOperator(**parameters)
        operator.config_as_file = options.config_map
        engine = choose_engine(options.engine, num_nodes=operator.nodes_wanted, served=ENGINES)
        pod = operator.build_pod_request_obj(dry_run=True)
        manifests = operator.build_manifests(engine, pod)
        return operator, pod, fit_older_jobset(manifests) if options.older_jobset else manifests

    return print_manifests(build)


def _topology(options: argparse.Namespace) -> dict[str, str]:
    """The pods' annotations by which Kueue places them."""
    wanted = {"required": options.required_topology, "preferred": options.preferred_topology}
    return {f"kueue.x-k8s.io/podset-{word}-topology": label for word, label in wanted.items() if label}
