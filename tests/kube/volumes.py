"""Volumes as directories, and mounts as far as a process without privileges can have them.

A mount is the identity when the volume's directory already is at `mountPath`, a symlink when `mountPath` lies under
one of the test's own roots, and the host's own directory for an emptyDir at a path such as /dev/shm or /tmp.
Nothing else can be mounted: the container does not start, and says so.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kube.podspec import Spec, field_value, read_data
from tests.kube.process import StartError
from tests.kube.resources import CLAIMS, CONFIG_MAPS, SECRETS, Resource
from tests.kube.store import Store


class MountError(Exception):
    """A volume is not there yet: the kubelet keeps trying, and says so in FailedMount events."""


@dataclass
class Disk:
    """The directories of one cluster.

    :param home: where the server makes its own directories
    :param mount_roots: directories in which the server may put symlinks
    :param claim_dirs: the directory behind each PersistentVolumeClaim, by namespace and name
    """

    home: Path
    mount_roots: tuple[Path, ...] = ()
    claim_dirs: dict[tuple[str, str], Path] = field(default_factory=dict)

    def pod_dir(self, pod: Spec) -> Path:
        directory = self.home / "pods" / str(pod["metadata"]["uid"])
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def set_up_volumes(self, store: Store, pod: Spec) -> dict[str, Path]:
        """The directory of each volume by its name. :raises MountError: when one does not exist"""
        volumes = pod["spec"].get("volumes") or []
        return {volume["name"]: self._volume_dir(store, pod, volume) for volume in volumes}

    def mount(self, container: Spec, volume_dirs: dict[str, Path], volumes: list[Spec]) -> None:
        """:raises StartError: for a mount that cannot be had here"""
        memory_or_disk = {volume["name"] for volume in volumes if "emptyDir" in volume}
        for mount in container.get("volumeMounts") or []:
            source = volume_dirs[mount["name"]] / mount.get("subPath", "")
            source.parent.mkdir(parents=True, exist_ok=True)
            if not source.exists():
                source.mkdir()
            self._mount_at(Path(mount["mountPath"]), source, is_empty_dir=mount["name"] in memory_or_disk)

    def clean_up(self, pod: Spec) -> None:
        """Remove what the pod had of its own; claims and host paths stay."""
        directory = self.home / "pods" / pod["metadata"]["uid"]
        mounts = [m for c in pod["spec"]["containers"] for m in c.get("volumeMounts") or []]
        for target in (Path(mount["mountPath"]) for mount in mounts):
            if target.is_symlink() and target.readlink().is_relative_to(directory):
                target.unlink()
        shutil.rmtree(directory, ignore_errors=True)

    def _mount_at(self, target: Path, source: Path, *, is_empty_dir: bool) -> None:
        if target.exists() and target.resolve() == source.resolve():
            return
        if any(target.is_relative_to(root) and target != root for root in self.mount_roots):
            self._link(target, source)
        elif not (is_empty_dir and target.is_dir()):
            roots = ", ".join(map(str, self.mount_roots)) or "none"
            raise StartError(f"the test server cannot mount {source} at {target}: allowed roots are {roots}")

    def _link(self, target: Path, source: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_symlink():
            target.unlink()
        elif target.is_dir():
            target.rmdir()  # fails when somebody's files are in it, as it should
        target.symlink_to(source)

    def _volume_dir(self, store: Store, pod: Spec, volume: Spec) -> Path:
        own = self.pod_dir(pod) / "volumes" / str(volume["name"])
        if "hostPath" in volume:
            return _host_dir(volume)
        if "persistentVolumeClaim" in volume:
            return self._claim_dir(pod["metadata"]["namespace"], volume["persistentVolumeClaim"]["claimName"])
        own.mkdir(parents=True, exist_ok=True)
        for name, data in _volume_files(store, pod, volume).items():
            path = own / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return own

    def _claim_dir(self, namespace: str, name: str) -> Path:
        directory = self.claim_dirs.setdefault(
            (namespace, name), self.home / CLAIMS.plural / namespace / name
        )
        directory.mkdir(parents=True, exist_ok=True)
        return directory


def _host_dir(volume: Spec) -> Path:
    host_path = volume["hostPath"]
    path = Path(host_path["path"])
    kind = host_path.get("type") or ""
    if kind.endswith("OrCreate"):
        path.mkdir(parents=True, exist_ok=True)
    elif kind == "Directory" and not path.is_dir():
        raise MountError(_failed(volume, f"hostPath type check failed: {path} is not a directory"))
    return path


def _volume_files(store: Store, pod: Spec, volume: Spec) -> dict[str, bytes]:
    if "configMap" in volume:
        return _data_files(
            store, pod, volume, CONFIG_MAPS, volume["configMap"], volume["configMap"].get("name")
        )
    if "secret" in volume:
        return _data_files(store, pod, volume, SECRETS, volume["secret"], volume["secret"].get("secretName"))
    if "downwardAPI" in volume:
        return _downward_files(pod, volume["downwardAPI"])
    files: dict[str, bytes] = {}
    for source in (volume.get("projected") or {}).get("sources", []):
        named: dict[str, Any] = {"name": volume["name"], **source}
        if "secret" in source:
            named["secret"] = {"secretName": source["secret"]["name"], **source["secret"]}
        files |= _volume_files(store, pod, named)
    return files


def _data_files(
    store: Store, pod: Spec, volume: Spec, resource: Resource, source: Spec, name: str | None
) -> dict[str, bytes]:
    data = read_data(store, resource, pod["metadata"]["namespace"], name or "")
    if data is None:
        if source.get("optional"):
            return {}
        raise MountError(_failed(volume, f'{resource.kind.lower()} "{name}" not found'))
    items = source.get("items")
    if items is None:
        return data
    missing = [item["key"] for item in items if item["key"] not in data]
    if missing and not source.get("optional"):
        raise MountError(_failed(volume, f"references non-existent config key: {missing[0]}"))
    return {item["path"]: data[item["key"]] for item in items if item["key"] in data}


def _downward_files(pod: Spec, source: Spec) -> dict[str, bytes]:
    items = [item for item in source.get("items", []) if "fieldRef" in item]
    return {item["path"]: field_value(pod, item["fieldRef"]["fieldPath"]).encode() for item in items}


def _failed(volume: Spec, why: str) -> str:
    return f'MountVolume.SetUp failed for volume "{volume["name"]}" : {why}'
