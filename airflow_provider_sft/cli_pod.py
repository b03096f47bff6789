"""`sft-config pod FILE`: the pod that SFTTrainerOperator would send, as YAML. It imports Airflow when it runs."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow_provider_sft.cli_pod_options import add_pod_options, read_pod_options
from airflow_provider_sft.contract.errors import ConfigError

if TYPE_CHECKING:
    from kubernetes.client import V1Pod

_TEXT = "Print the pod that SFTTrainerOperator would send for a config, as YAML for kubectl apply -f -."


def add_pod_parser(subparsers: Any) -> None:
    """:param subparsers: what `ArgumentParser.add_subparsers` gave; the parsed arguments' `command` is the command"""
    parser = subparsers.add_parser("pod", help=_TEXT, description=_TEXT)
    add_pod_options(parser)
    parser.set_defaults(command=_run_pod)


def print_manifests(build: Callable[[], tuple[Any, V1Pod, list[dict[str, Any]]]]) -> int:
    """Print what `build` makes, and before it the ConfigMap that its pod mounts, if it mounts one.

    :param build: gives the operator, its pod, and the manifests made of it
    :raises ConfigError: a wrong config or parameter
    """
    from airflow_provider_sft.failures import PermanentFailure

    try:
        with contextlib.redirect_stdout(sys.stderr):  # Airflow logs to stdout: how sizes came about
            operator, pod, manifests = build()
            config_maps = [] if operator.long_config() is None else [_config_map(pod, operator.config)]
    except PermanentFailure as failure:
        raise ConfigError(str(failure), advice="") from None
    sys.stdout.write(_format([*config_maps, *manifests]))
    return 0


def _run_pod(options: argparse.Namespace) -> int:
    parameters = read_pod_options(options)

    def build() -> tuple[Any, V1Pod, list[dict[str, Any]]]:
        from airflow_provider_sft.engines.plan import drop_empty
        from airflow_provider_sft.operators import SFTTrainerOperator
        from airflow_provider_sft.pod_outcome import to_plain

        operator = SFTTrainerOperator(**parameters)
        operator.config_as_file = options.config_map
        pod = operator.build_pod_request_obj(dry_run=True)
        return operator, pod, [drop_empty(to_plain(pod))]

    return print_manifests(build)


def _config_map(pod: V1Pod, config: dict[str, Any]) -> dict[str, Any]:
    from airflow_provider_sft.config_map import CONFIG_FILE, config_map_name

    name = {"name": config_map_name(pod.metadata.name), "namespace": pod.metadata.namespace}
    data = {CONFIG_FILE: json.dumps(config, indent=2, ensure_ascii=False) + "\n"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": name, "data": data}


def _format(manifests: list[dict[str, Any]]) -> str:
    """YAML for `kubectl apply -f -`; a text of several lines stands as it is."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)

    Dumper.add_representer(str, write_text)
    return yaml.dump_all(manifests, Dumper=Dumper, sort_keys=False, allow_unicode=True)
