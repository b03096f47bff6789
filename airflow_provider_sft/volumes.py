"""The short form of volumes: `{"/data/input": "pvc:input-pvc:ro", "/config": "configmap:name"}`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from kubernetes.client import Configuration
from kubernetes.client import models as k8s

from airflow_provider_sft.failures import LaunchFailure

T = TypeVar("T")

SHM_PATH = "/dev/shm"  # noqa: S108  # where NCCL and data loaders share memory
SCRATCH_PATH = "/tmp"  # noqa: S108  # the one writable directory of a read-only root


@dataclass(frozen=True)
class Mount:
    """A volume and where it appears."""

    volume: k8s.V1Volume
    volume_mount: k8s.V1VolumeMount


def make_model(kind: Callable[..., T], **fields: Any) -> T:
    """One of Kubernetes' models, with a configuration that all of ours share: making and copying one each is slow."""
    return kind(local_vars_configuration=_configuration(), **fields)


@cache
def _configuration() -> Configuration:
    return Configuration()


def parse_volumes(short_form: Mapping[str, str]) -> list[Mount]:
    """:raises LaunchFailure: a form that is none of pvc:, configmap:, secret:, emptydir"""
    return [_parse(path, source, index) for index, (path, source) in enumerate(short_form.items())]


def shm_mount(size: str) -> Mount:
    source = make_model(k8s.V1EmptyDirVolumeSource, medium="Memory", size_limit=size)
    return Mount(
        make_model(k8s.V1Volume, name="sft-shm", empty_dir=source),
        make_model(k8s.V1VolumeMount, name="sft-shm", mount_path=SHM_PATH),
    )


def scratch_mount() -> Mount:
    return Mount(
        make_model(k8s.V1Volume, name="sft-scratch", empty_dir=make_model(k8s.V1EmptyDirVolumeSource)),
        make_model(k8s.V1VolumeMount, name="sft-scratch", mount_path=SCRATCH_PATH),
    )


def configmap_mount(name: str, path: str) -> Mount:
    return _parse(path, f"configmap:{name}", "config")


def _parse(path: str, source: str, tag: int | str) -> Mount:
    kind, _, rest = source.partition(":")
    name, _, mode = rest.partition(":")
    make = _SOURCES.get(kind)
    if (
        make is None
        or (not name and kind != "emptydir")
        or mode not in ("", "ro")
        or not path.startswith("/")
    ):
        raise LaunchFailure(
            f"volumes[{path!r}] is {source!r}. Give an absolute path and one of 'pvc:CLAIM', 'pvc:CLAIM:ro', "
            "'configmap:NAME', 'secret:NAME', 'emptydir', 'emptydir:SIZE'."
        )
    volume_name = f"sft-{tag}"
    volume = make(name)
    volume.name = volume_name
    # ConfigMaps and Secrets cannot be written anyway; saying so lets strict admission policies pass.
    read_only = mode == "ro" or kind in ("configmap", "secret")
    return Mount(
        volume,
        make_model(
            k8s.V1VolumeMount, name=volume_name, mount_path=path, read_only=True if read_only else None
        ),
    )


_SOURCES: Mapping[str, Callable[[str], k8s.V1Volume]] = {
    "pvc": lambda claim: make_model(
        k8s.V1Volume,
        name="",
        persistent_volume_claim=make_model(k8s.V1PersistentVolumeClaimVolumeSource, claim_name=claim),
    ),
    "configmap": lambda name: make_model(
        k8s.V1Volume, name="", config_map=make_model(k8s.V1ConfigMapVolumeSource, name=name)
    ),
    "secret": lambda name: make_model(
        k8s.V1Volume, name="", secret=make_model(k8s.V1SecretVolumeSource, secret_name=name)
    ),
    "emptydir": lambda size: make_model(
        k8s.V1Volume, name="", empty_dir=make_model(k8s.V1EmptyDirVolumeSource, size_limit=size or None)
    ),
}
