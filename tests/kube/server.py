"""A Kubernetes cluster of one node on 127.0.0.1, for tests: real HTTP, real processes, faults on request.

    with KubeServer(home=tmp_path, images={"busybox": []}) as kube:
        kubeconfig = kube.write_kubeconfig(tmp_path / "kubeconfig")
        kube.inject(Evicted(after_lines=3))

What it does not do: isolate (a container is a process of this user, with its environment but the host's files),
enforce resource limits, run a network, or execute commands in containers.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from aiohttp import web

from tests.kube.app import ClusterApp
from tests.kube.faults import Disruption, Fault, Faults
from tests.kube.kubelet import Kubelet, Start
from tests.kube.requests import Request
from tests.kube.resources import (
    CLAIMS,
    CONFIG_MAPS,
    NAMESPACES,
    PODS,
    SECRETS,
    SERVICE_ACCOUNTS,
    Registry,
    Resource,
)
from tests.kube.store import Store, select_changes
from tests.kube.volumes import Disk

T = TypeVar("T")
_ANSWER_WITHIN_S = 30


class KubeServer:
    """The cluster, in a thread of its own. All methods may be called from any thread.

    :param home: an empty directory for pods, volumes and claims
    :param images: the entrypoint of each image that can be pulled; empty where containers bring their command
    :param mount_roots: directories under which volumes may appear, as symlinks, at their mountPath
    :param base_env: what every container sees besides its own environment
    :param port: 0 takes a free one
    """

    def __init__(
        self,
        *,
        home: Path,
        images: Mapping[str, Sequence[str]],
        mount_roots: Iterable[Path] = (),
        base_env: Mapping[str, str] | None = None,
        namespaces: Iterable[str] = ("default",),
        port: int = 0,
    ) -> None:
        self._registry = Registry()
        self._faults = Faults()
        self._disk = Disk(home, tuple(mount_roots))
        self._images = {name: list(entrypoint) for name, entrypoint in images.items()}
        self._base_env = dict(base_env or {})
        self._namespaces = list(namespaces)
        self._tokens = {"token-1"}
        self._token = "token-1"
        self._kubeconfigs: list[Path] = []
        self._wanted_port = port
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kube-server", daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self.port = 0

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        self._thread.start()
        if not self._ready.wait(_ANSWER_WITHIN_S):
            raise RuntimeError(
                "The test server did not start. Look for the traceback of thread kube-server above."
            )
        return self

    def stop(self) -> None:
        """Kill what still runs and close the port. A second call does nothing."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(_ANSWER_WITHIN_S)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[Request]:
        """Every request so far, in order of arrival."""
        return list(self._app.requests)

    @property
    def created_pods(self) -> list[dict[str, Any]]:
        """Every pod ever created, as it was first stored."""
        return list(self._kubelet.created)

    @property
    def starts(self) -> list[Start]:
        """Every process ever started."""
        return list(self._kubelet.starts)

    def write_kubeconfig(self, path: Path) -> Path:
        """A kubeconfig file for this server. `expire_token` keeps it up to date."""
        path.write_text(yaml.safe_dump(self.kubeconfig()))
        self._kubeconfigs.append(path)
        return path

    def kubeconfig(self) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "test", "user": {"token": self._token}}],
            "contexts": [
                {"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "default"}}
            ],
            "current-context": "test",
        }

    def expire_token(self) -> None:
        """Refuse the token of all clients so far with 401; the kubeconfig files hold a new one."""
        old, self._token = self._token, f"token-{time.monotonic_ns()}"
        for path in self._kubeconfigs:
            path.write_text(yaml.safe_dump(self.kubeconfig()))
        self._tokens.add(self._token)
        self._tokens.discard(old)

    def inject(self, fault: Fault) -> None:
        """Let `fault` wait for its victim. Pods that already run are among those that a disruption may strike."""
        self._call(lambda: self._faults.add(fault))

    def strike(self, name: str, disruption: Disruption, namespace: str = "default") -> None:
        """Let a disruption happen to this pod now."""
        self._call(lambda: self._kubelet.strike(self._store.get(PODS, namespace, name), disruption))

    def clear_faults(self) -> None:
        self._call(self._faults.clear)

    def uncordon(self) -> None:
        self._call(lambda: self._kubelet.cordon(cordoned=False))

    def move_node(self, utc_offset_h: float) -> None:
        """Let the log's stamps carry this offset from now on, as under `TZ=Asia/Tokyo`."""
        self._kubelet.log_zone = timezone(timedelta(hours=utc_offset_h))

    def expire_history(self) -> None:
        """Watches from a resourceVersion so far get 410 Expired."""

        def forget() -> None:
            self._store.oldest_watchable = self._store.version + 1
            self._store.version += 1

        self._call(forget)

    def serve(self, group: str, version: str, plural: str, kind: str) -> Resource:
        """Serve a custom resource, with a status subresource. What is not served is 404, as without its CRD."""
        resource = Resource(group, version, plural, kind, status=True, custom=True)
        self._registry.served.append(resource)
        return resource

    def pods(self, namespace: str = "default") -> list[dict[str, Any]]:
        """The pods that exist now."""
        return self._call(lambda: copy.deepcopy(self._store.list(PODS, namespace)))

    def pod(self, name: str, namespace: str = "default") -> dict[str, Any] | None:
        return self._call(lambda: copy.deepcopy(self._store.find(PODS, namespace, name)))

    def pod_history(self, name: str, namespace: str = "default") -> list[dict[str, Any]]:
        """Every state the API ever showed of pods of this name, the last one before deletion included."""

        def collect() -> list[dict[str, Any]]:
            changes = select_changes(self._store.history, PODS, namespace)
            return [copy.deepcopy(change.obj) for change in changes if change.obj["metadata"]["name"] == name]

        return self._call(collect)

    def wait_until_gone(self, name: str, timeout_s: float = 15) -> list[dict[str, Any]]:
        """Its history, when the pod no longer exists. :raises TimeoutError: when it does"""
        end = time.monotonic() + timeout_s
        while (pod := self.pod(name)) is not None:
            if time.monotonic() > end:
                raise TimeoutError(f"Pod {name!r} is still there after {timeout_s} s: {pod}")
            time.sleep(0.02)
        return self.pod_history(name)

    def wait_for_pod(
        self, until: Callable[[dict[str, Any]], bool], *, name: str = "", timeout_s: float = 15
    ) -> dict[str, Any]:
        """The first pod (of this name) for which `until` holds. :raises TimeoutError: when none comes"""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            for pod in self.pods():
                if name in ("", pod["metadata"]["name"]) and until(pod):
                    return pod
            time.sleep(0.02)
        raise TimeoutError(
            f"No pod {name!r} came to be as expected within {timeout_s} s. Pods: {self.pods()}"
        )

    def wait_for_start(self, num_starts: int = 1, timeout_s: float = 15) -> Start:
        """The process that was started as the `num_starts`-th. :raises TimeoutError: when there are fewer"""
        end = time.monotonic() + timeout_s
        while len(self.starts) < num_starts:
            if time.monotonic() > end:
                raise TimeoutError(
                    f"{len(self.starts)} processes were started within {timeout_s} s, not {num_starts}."
                )
            time.sleep(0.02)
        return self.starts[num_starts - 1]

    def add_image(self, name: str, entrypoint: Sequence[str]) -> None:
        """Let an image be pulled; `entrypoint` runs where a container brings no command."""
        self._images[name] = list(entrypoint)

    def add_claim(self, name: str, directory: Path | None = None, namespace: str = "default") -> None:
        """A PersistentVolumeClaim with `directory` behind it."""
        if directory:
            self._disk.claim_dirs[namespace, name] = directory
        spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "10Gi"}}}
        self._create(
            CLAIMS, namespace, {"metadata": {"name": name}, "spec": spec, "status": {"phase": "Bound"}}
        )

    def add_secret(self, name: str, data: Mapping[str, str], namespace: str = "default") -> None:
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
        self._create(SECRETS, namespace, {"metadata": {"name": name}, "type": "Opaque", "data": encoded})

    def add_config_map(self, name: str, data: Mapping[str, str], namespace: str = "default") -> None:
        self._create(CONFIG_MAPS, namespace, {"metadata": {"name": name}, "data": dict(data)})

    def _create(self, resource: Resource, namespace: str, obj: dict[str, Any]) -> None:
        self._call(lambda: self._store.create(resource, namespace, obj))

    def _call(self, work: Callable[[], T]) -> T:
        """Run `work` on the server's loop and return what it returns."""

        async def run() -> T:
            return work()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(_ANSWER_WITHIN_S)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        self._store = Store(self._registry)
        self._kubelet = Kubelet(self._store, self._faults, self._disk, self._images, self._base_env)
        self._store.on_delete = self._kubelet.collect
        self._furnish()
        self._app = ClusterApp(self._store, self._kubelet, self._faults, self._tokens)
        runner = web.AppRunner(
            self._app.build(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self._wanted_port)
        await site.start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        try:
            await self._stopping.wait()
        finally:
            await self._kubelet.shut_down()
            await runner.cleanup()

    def _furnish(self) -> None:
        self._kubelet.add_node()
        for name in ("kube-system", *self._namespaces):
            labels = {"kubernetes.io/metadata.name": name}
            namespace = {"metadata": {"name": name, "labels": labels}, "status": {"phase": "Active"}}
            self._store.create(NAMESPACES, "", namespace)
            self._store.create(SERVICE_ACCOUNTS, name, {"metadata": {"name": "default"}})
