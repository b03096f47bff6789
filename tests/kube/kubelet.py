"""The node: one worker a pod, deletion with grace, and the disruptions that a test injects."""

from __future__ import annotations

import asyncio
import copy
import signal
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import UTC, timezone
from typing import Any

from tests.kube.container import Container
from tests.kube.disruptions import strike
from tests.kube.events import record_event
from tests.kube.faults import Disruption, Faults
from tests.kube.pod_worker import TERMINAL, PodWorker
from tests.kube.process import ContainerProcess
from tests.kube.resources import NODES, PODS, Resource
from tests.kube.scheduling import NODE
from tests.kube.store import Store, now
from tests.kube.volumes import Disk

_DEFAULT_GRACE_S = 30


@dataclass(frozen=True)
class Start:
    """A process that was started, for tests to count."""

    pod: str
    namespace: str
    uid: str
    container: str
    argv: list[str]
    pid: int


@dataclass
class Kubelet:
    """Runs pods as local processes.

    :param images: the entrypoint of each image that can be pulled; empty where containers bring their command
    :param base_env: what every container sees besides its own environment
    :param start_s: how long a container is ContainerCreating
    :param sync_s: how often the kubelet and the scheduler look again
    :param pull_s: between two pulls of an image that cannot be had
    :param restart_s: before a container is restarted (restartPolicy)
    :param log_zone: of the node's container runtime
    """

    store: Store
    faults: Faults
    disk: Disk
    images: dict[str, list[str]]
    base_env: dict[str, str] = field(default_factory=dict)
    start_s: float = 0.02
    sync_s: float = 0.05
    pull_s: float = 0.4
    restart_s: float = 0.1
    log_zone: timezone = UTC
    starts: list[Start] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)  # every pod as it was first stored
    workers: dict[str, PodWorker] = field(default_factory=dict)
    _tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _processes: list[ContainerProcess] = field(default_factory=list)

    def add_node(self) -> None:
        conditions = [
            {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastTransitionTime": now()}
        ]
        status = {
            "conditions": conditions,
            "allocatable": {"nvidia.com/gpu": "8", "cpu": "64", "memory": "512Gi"},
        }
        self.store.create(NODES, "", {"metadata": {"name": NODE}, "spec": {}, "status": status})

    def accept(self, pod: dict[str, Any]) -> None:
        """Take a pod that the API has just created."""
        self.created.append(copy.deepcopy(pod))
        worker = PodWorker(self, pod)
        self.workers[worker.uid] = worker
        self._tasks[worker.uid] = asyncio.create_task(worker.run())

    def delete(self, pod: dict[str, Any], grace_s: float | None = None) -> None:
        """Delete a pod as the API does: SIGTERM, up to `grace_s` seconds (its own by default), SIGKILL, gone."""
        grace_s = self.grace_of(pod) if grace_s is None else grace_s
        worker = self.workers.get(pod["metadata"]["uid"])
        if worker is None or not worker.has_processes or grace_s == 0:
            self.vanish(pod)
            return
        self.mark_deleted(pod, grace_s)
        worker.stop(grace_s)

    def grace_of(self, pod: dict[str, Any]) -> float:
        return float(pod["spec"].get("terminationGracePeriodSeconds", _DEFAULT_GRACE_S))

    def mark_deleted(self, pod: dict[str, Any], grace_s: float) -> None:
        """Set the deletionTimestamp; a second deletion may only shorten the time."""
        current = self.store.get(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"])
        metadata = current["metadata"]
        if grace_s < metadata.get("deletionGracePeriodSeconds", grace_s + 1):
            deletion = {"deletionTimestamp": now(after_s=grace_s), "deletionGracePeriodSeconds": int(grace_s)}
            self.store.update(PODS, current | {"metadata": metadata | deletion})

    def vanish(self, pod: dict[str, Any]) -> None:
        """Away at once: killed, and no longer in the API."""
        if worker := self.workers.pop(pod["metadata"]["uid"], None):
            self.silence(worker)
            for container in worker.all_containers:
                container.log.close()
        self.store.remove(PODS, pod)
        self.disk.clean_up(pod)

    def silence(self, worker: PodWorker) -> None:
        """Kill the pod's processes without a word to the API."""
        worker.silent = True
        worker.signal_containers(signal.SIGKILL)
        if task := self._tasks.pop(worker.uid, None):
            task.cancel()

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks[f"background-{id(task)}"] = task

    def finish(self, worker: PodWorker) -> None:
        """The last container has ended: a pod that is being deleted goes now."""
        pod = worker.current()
        if pod and pod["metadata"].get("deletionTimestamp") and not worker.silent:
            self.vanish(pod)

    def collect(self, resource: Resource, obj: dict[str, Any]) -> None:
        """How the garbage collector deletes: pods with their grace, everything else at once."""
        if resource is PODS:
            self.delete(obj)
        else:
            self.store.delete(resource, obj)

    def disrupt(self, worker: PodWorker, *, ran_s: float | None, num_lines: int, line: str) -> None:
        """Let a waiting disruption strike this pod, if one is due."""
        if worker.phase in TERMINAL or worker.stopping:
            return
        fault = self.faults.take(
            Disruption,
            lambda f: f.concerns(worker.name) and f.is_due(ran_s=ran_s, num_lines=num_lines, line=line),
        )
        if fault:
            strike(worker, fault)

    def strike(self, pod: dict[str, Any], fault: Disruption) -> None:
        """Let a disruption happen to a pod now; one that has ended or is ending has nothing to fear."""
        worker = self.workers.get(pod["metadata"]["uid"])
        if worker and worker.phase not in TERMINAL and not worker.stopping:
            strike(worker, fault)

    def is_silent(self, pod: dict[str, Any]) -> bool:
        worker = self.workers.get(pod["metadata"]["uid"])
        return worker is not None and worker.silent

    def cordon(self, *, cordoned: bool = True) -> None:
        node = self.store.get(NODES, "", NODE)
        spec = {key: value for key, value in node["spec"].items() if key != "unschedulable"}
        self.store.update(NODES, node | {"spec": spec | ({"unschedulable": True} if cordoned else {})})
        if cordoned:
            record_event(
                self.store, node, "NodeNotSchedulable", f"Node {NODE} status is now: NodeNotSchedulable"
            )

    def find_container(self, pod: dict[str, Any], name: str) -> Container | None:
        worker = self.workers.get(pod["metadata"]["uid"])
        found = [c for c in worker.all_containers if c.name == name] if worker else []
        return found[0] if found else None

    def record_start(self, worker: PodWorker, container: Container, argv: list[str]) -> None:
        assert container.process
        pid = container.process.pid
        self.starts.append(Start(worker.name, worker.namespace, worker.uid, container.name, argv, pid))
        self._processes.append(container.process)

    async def shut_down(self) -> None:
        """Kill whatever still runs, and wait for its end."""
        tasks = list(self._tasks.values())
        for worker in self.workers.values():
            self.silence(worker)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for process in self._processes:
            process.kill()
        await asyncio.gather(*(process.wait() for process in self._processes))
