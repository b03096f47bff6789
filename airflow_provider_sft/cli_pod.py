"""`sft-config pod FILE`: the pod that SFTTrainerOperator would send, as YAML. The one command that imports Airflow."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

from airflow_provider_sft.contract.errors import ConfigError

_TEXT = "Print the pod that SFTTrainerOperator would send for a config, as YAML."
_OPTIONS = {
    "--image": "the trainer image",
    "--gpu-resource": "as in nvidia.com/mig-1g.10gb",
    "--cpu": "request/limit, as in 5/10; left out, derived from the config",
    "--memory": "request/limit, as in 80Gi/200Gi; likewise",
    "--ephemeral-storage": "request/limit, as in 1600Gi/2Ti; likewise",
    "--shm-size": "of /dev/shm",
    "--queue-name": "Kueue's queue",
    "--namespace": "where the pod goes",
    "--name": "the pod's name",
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
    parser.set_defaults(command=run_pod)


def run_pod(options: argparse.Namespace) -> int:
    """:raises SFTError: a wrong config or option"""
    from airflow_provider_sft.cli import read_config_argument

    config = read_config_argument(options.file)
    parameters = {key: value for key, value in vars(options).items() if key not in ("command", "file")}
    parameters = {"namespace": "default", **parameters, "volumes": _parse_volumes(options.volumes)}
    with contextlib.redirect_stdout(sys.stderr):  # Airflow logs to stdout: how sizes came about
        text = build_pod_yaml(config, parameters)
    sys.stdout.write(text)
    return 0


def build_pod_yaml(config: dict[str, Any], parameters: dict[str, Any]) -> str:
    """:raises ConfigError: a wrong config or parameter"""
    import yaml

    from airflow_provider_sft.failures import PermanentFailure
    from airflow_provider_sft.operators import SFTTrainerOperator
    from airflow_provider_sft.pod_outcome import to_plain

    try:
        operator = SFTTrainerOperator(task_id="tune", config=config, **parameters)
        pod = to_plain(operator.build_pod_request_obj(dry_run=True))
    except PermanentFailure as failure:
        raise ConfigError(str(failure), advice="") from None
    return yaml.safe_dump(pod, sort_keys=False, allow_unicode=True)


def _parse_volumes(pairs: list[str]) -> dict[str, str]:
    volumes = {}
    for pair in pairs:
        path, equals, source = pair.partition("=")
        if not equals:
            raise ConfigError(f"--volume is {pair!r}. Give PATH=SOURCE, as in /data=pvc:CLAIM.")
        volumes[path] = source
    return volumes
