"""`sft-config pod FILE`: the pod that SFTTrainerOperator would send, as YAML. The one command that imports Airflow."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from typing import Any

from airflow_provider_sft.contract.errors import ConfigError

_TEXT = "Print the pod that SFTTrainerOperator would send for a config, as YAML for kubectl apply -f -."
_OPTIONS = {
    "--image": "the trainer image",
    "--gpu-resource": "as in nvidia.com/mig-1g.10gb",
    "--cpu": "request/limit, as in 5/10; left out, derived from the config",
    "--memory": "request/limit, as in 80Gi/200Gi; likewise",
    "--ephemeral-storage": "request/limit, as in 1600Gi/2Ti; likewise",
    "--shm-size": "of /dev/shm",
    "--queue-name": "Kueue's queue",
    "--namespace": "where the pod goes",
    "--name": "the pod's name; left out, one that no other pod has",
}


def add_pod_parser(subparsers: Any) -> None:
    """:param subparsers: what `ArgumentParser.add_subparsers` gave; the parsed arguments' `command` is the command"""
    parser = subparsers.add_parser("pod", help=_TEXT, description=_TEXT)
    parser.add_argument("file", metavar="FILE", help="a JSON file, or - for standard input")
    for option, text in _OPTIONS.items():
        parser.add_argument(option, help=text, default=argparse.SUPPRESS)
    parser.add_argument("--gpus", type=int, help="0 trains on CPU", default=argparse.SUPPRESS)
    parser.add_argument(
        "--grace-period",
        type=int,
        dest="termination_grace_period",
        help="seconds to save in",
        default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--volume",
        action="append",
        default=[],
        dest="volumes",
        metavar="PATH=SOURCE",
        help="as in /data=pvc:CLAIM, /config=configmap:NAME; may be repeated",
    )
    parser.add_argument(
        "--config-map",
        action="store_true",
        help="the config as a ConfigMap before the pod, to read and edit, not base64 in the pod; always so where it is too long",
    )
    parser.set_defaults(command=run_pod)


def run_pod(options: argparse.Namespace) -> int:
    """:raises SFTError: a wrong config or option"""
    from airflow_provider_sft.cli import read_config_argument

    config = read_config_argument(options.file)
    own = ("command", "file", "config_map")
    parameters = {key: value for key, value in vars(options).items() if key not in own}
    parameters = {"namespace": "default", **parameters, "volumes": _parse_volumes(options.volumes)}
    with contextlib.redirect_stdout(sys.stderr):  # Airflow logs to stdout: how sizes came about
        manifests = build_pod_manifests(config, parameters, config_as_file=options.config_map)
    sys.stdout.write(format_manifests(manifests))
    return 0


def build_pod_manifests(
    config: dict[str, Any], parameters: dict[str, Any], *, config_as_file: bool
) -> list[dict[str, Any]]:
    """The pod, and before it the ConfigMap that it mounts, if it mounts one.

    :raises ConfigError: a wrong config or parameter
    """
    from airflow_provider_sft.config_map import CONFIG_FILE, config_map_name
    from airflow_provider_sft.failures import PermanentFailure
    from airflow_provider_sft.operators import SFTTrainerOperator
    from airflow_provider_sft.pod_outcome import to_plain

    try:
        operator = SFTTrainerOperator(
            task_id="tune", config=config, random_name_suffix="name" not in parameters, **parameters
        )
        operator.config_as_file = config_as_file
        pod = _drop_empty(to_plain(operator.build_pod_request_obj(dry_run=True)))
        if operator.long_config() is None:
            return [pod]
    except PermanentFailure as failure:
        raise ConfigError(str(failure), advice="") from None
    name = {"name": config_map_name(pod["metadata"]["name"]), "namespace": pod["metadata"]["namespace"]}
    data = {CONFIG_FILE: json.dumps(config, indent=2, ensure_ascii=False) + "\n"}
    return [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": name, "data": data}, pod]


def format_manifests(manifests: list[dict[str, Any]]) -> str:
    """YAML for `kubectl apply -f -`; a text of several lines stands as it is."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def write_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)

    Dumper.add_representer(str, write_text)
    return yaml.dump_all(manifests, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def _drop_empty(value: Any) -> Any:
    """Without the empty fields that Airflow sends and nobody wants to read; `emptyDir: {}` says something."""
    if isinstance(value, list):
        return [_drop_empty(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _drop_empty(each) for key, each in value.items() if each not in ({}, []) or key == "emptyDir"
    }


def _parse_volumes(pairs: list[str]) -> dict[str, str]:
    volumes = {}
    for pair in pairs:
        path, equals, source = pair.partition("=")
        if not equals:
            raise ConfigError(f"--volume is {pair!r}. Give PATH=SOURCE, as in /data=pvc:CLAIM.")
        volumes[path] = source
    return volumes
