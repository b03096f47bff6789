"""The options of `sft-config pod` and `sft-config job` that describe the pod, and the operator's parameters they stand for."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from airflow_provider_sft.contract.errors import ConfigError, NotFoundError


class _Pairs(NamedTuple):
    """An option that may be repeated, of a name and a value each time."""

    parameter: str
    form: str
    example: str
    help: str


_TEXTS = {
    "--image": "the trainer image",
    "--gpu-resource": "as in nvidia.com/mig-1g.10gb",
    "--cpu": "request/limit, as in 5/10; left out, derived from the config",
    "--memory": "request/limit, as in 80Gi/200Gi; likewise",
    "--ephemeral-storage": "request/limit, as in 1600Gi/2Ti; likewise",
    "--shm-size": "of /dev/shm",
    "--queue-name": "Kueue's queue",
    "--namespace": "where the pod goes",
    "--name": "the pod's name; left out, one that no other pod has",
    "--service-account-name": "whose rights the pod has",
    "--image-pull-secrets": "names of Secrets, with commas between them",
    "--pod-template-file": "a pod's YAML for what no option says, as affinity and tolerations",
}
_PAIRS = {
    "--volume": _Pairs(
        "volumes",
        "PATH=SOURCE",
        "/data=pvc:CLAIM",
        "PATH is mounted from pvc:, configmap:, secret: or emptydir",
    ),
    "--env": _Pairs("env_vars", "NAME=VALUE", "NCCL_IB_HCA=mlx5", "an environment variable"),
    "--secret": _Pairs(
        "secrets", "NAME=SECRET/KEY", "HF_TOKEN=hub/token", "an environment variable from a Secret"
    ),
    "--resource": _Pairs(
        "resources", "NAME=COUNT", "rdma/hca=1", "besides the GPUs, requested and limited alike"
    ),
    "--label": _Pairs(
        "labels", "KEY=VALUE", "team=nlp", "on job and pods; of kueue.x-k8s.io/, on the job alone"
    ),
    "--annotation": _Pairs("annotations", "KEY=VALUE", "k8s.v1.cni.cncf.io/networks=rdma", "on the pods"),
    "--node-selector": _Pairs(
        "node_selector", "KEY=VALUE", "gpu.product=H100", "a label that nodes must have"
    ),
}
_NOT_PARAMETERS = ("command", "file", "config_map", "resources")


def add_pod_options(parser: argparse.ArgumentParser) -> None:
    """FILE, and what describes the pod; `read_pod_options` reads them."""
    parser.add_argument("file", metavar="FILE", help="a JSON file, or - for standard input")
    for option, text in _TEXTS.items():
        parser.add_argument(option, help=text, default=argparse.SUPPRESS)
    for option, pairs in _PAIRS.items():
        text = f"{pairs.help}, as in {pairs.example}; may be repeated"
        parser.add_argument(
            option, action="append", default=[], dest=pairs.parameter, metavar=pairs.form, help=text
        )
    parser.add_argument("--gpus", type=int, help="0 trains on CPU", default=argparse.SUPPRESS)
    parser.add_argument(
        "--model-parameters",
        type=float,
        metavar="COUNT",
        help="as in 13e9, where the model's files cannot be read from here",
        default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--grace-period",
        type=int,
        dest="termination_grace_period",
        help="seconds to save in",
        default=argparse.SUPPRESS,
    )
    _add_config_options(parser)


def _add_config_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config-map",
        action="store_true",
        help="the config as a ConfigMap before the pod, to read and edit, not base64 in the pod; always so where it is too long",
    )
    parser.add_argument(
        "--extra-key",
        metavar="KEY",
        action="append",
        default=[],
        dest="extra_config_keys",
        help="a key of a newer trainer image, passed through unread; may be repeated",
    )
    parser.add_argument(
        "--allow-remote-code", action="store_true", help="a model or data set may bring code of its own"
    )


def read_pod_options(options: argparse.Namespace, *, others: Collection[str] = ()) -> dict[str, Any]:
    """The operator's parameters that the options stand for.

    :param others: the command's own, which are no parameters
    :raises SFTError: a wrong config or option
    """
    from airflow_provider_sft.cli import read_config_argument

    skipped = {*_NOT_PARAMETERS, *others}
    given = {key: value for key, value in vars(options).items() if key not in skipped}
    named = {
        pairs.parameter: _parse_pairs(option, getattr(options, pairs.parameter))
        for option, pairs in _PAIRS.items()
    }
    resources = named.pop("resources")
    if resources:
        from kubernetes.client import V1ResourceRequirements

        given["container_resources"] = V1ResourceRequirements(limits=resources, requests=resources)
    if (template := given.get("pod_template_file")) and not Path(template).is_file():
        raise NotFoundError(
            f"--pod-template-file is {template!r}, which is no file. Give the path of a pod's YAML."
        )
    config = read_config_argument(options.file)
    suffix = {"random_name_suffix": "name" not in given}
    return {"task_id": "tune", "namespace": "default", "config": config, **suffix, **given, **named}


def _parse_pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            form = _PAIRS[option]
            raise ConfigError(f"{option} is {text!r}. Give {form.form}, as in {form.example}.")
        pairs[name] = value
    return pairs
