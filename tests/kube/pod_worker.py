"""The life of one pod: scheduled, set up, its containers run as processes, and its status published at each step."""

from __future__ import annotations

import asyncio
import copy
import math
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.kube.container import Container
from tests.kube.events import record_event
from tests.kube.faults import ContainerConfigError, StatusLag, TerminationMessage
from tests.kube.images import await_image
from tests.kube.podspec import NODE_IP, POD_IP, ConfigError, build_argv, build_env
from tests.kube.process import ContainerProcess, StartError
from tests.kube.resources import PODS
from tests.kube.scheduling import await_node
from tests.kube.store import now
from tests.kube.volumes import MountError

if TYPE_CHECKING:
    from tests.kube.kubelet import Kubelet

TERMINAL = ("Succeeded", "Failed")


class PodWorker:
    """Carries one pod through its life. The kubelet owns it and tells it to stop."""

    def __init__(self, kubelet: Kubelet, pod: dict[str, Any]) -> None:
        self.kubelet, self.store = kubelet, kubelet.store
        self.uid: str = pod["metadata"]["uid"]
        self.name: str = pod["metadata"]["name"]
        self.namespace: str = pod["metadata"]["namespace"]
        self.pod = copy.deepcopy(pod)
        self.phase, self.reason, self.message = "Pending", "", ""
        self.start_time = ""
        self.conditions: dict[str, dict[str, Any]] = {}
        self.containers: list[Container] = []
        self.init_containers: list[Container] = []
        self.silent = False  # the node is lost: nothing reaches the API any more
        self.scheduled = False
        self.stopping = False
        self.volume_dirs: dict[str, Path] = {}

    @property
    def all_containers(self) -> list[Container]:
        return [*self.init_containers, *self.containers]

    @property
    def has_processes(self) -> bool:
        return any("running" in container.state for container in self.all_containers)

    def current(self) -> dict[str, Any] | None:
        """The pod as the API shows it, or None when it is gone or another of the same name has come."""
        pod = self.store.find(PODS, self.namespace, self.name)
        return pod if pod and pod["metadata"]["uid"] == self.uid else None

    def event(self, reason: str, message: str, **about: str) -> None:
        if (pod := self.current()) and not self.silent:
            record_event(self.store, pod, reason, message, **about)

    async def run(self) -> None:
        """From creation to the last container's end. Ends early when the kubelet cancels it."""
        watching = asyncio.create_task(self._watch_over())
        try:
            await await_node(self)
            await self._set_up()
            if await self._run_init_containers():
                await self._run_containers()
            self._conclude()
        finally:
            watching.cancel()

    def publish(self, *, even_if_silent: bool = False) -> None:
        """Write the status into the API, if there is anything new in it."""
        pod = self.current()
        if pod is None or (self.silent and not even_if_silent):
            return
        status = pod["status"] | self._status() | {"conditions": self._merge_conditions(pod)}
        self.store.update(PODS, pod | {"status": status})

    def set_condition(self, kind: str, value: bool, reason: str = "", message: str = "") -> None:
        old = self.conditions.get(kind, {})
        text = "True" if value else "False"
        since = old["lastTransitionTime"] if old.get("status") == text else now()
        condition = {"type": kind, "status": text, "lastProbeTime": None, "lastTransitionTime": since}
        details = {"reason": reason, "message": message}
        self.conditions[kind] = condition | {key: value for key, value in details.items() if value}

    def fail(self, reason: str, message: str) -> None:
        """The kubelet's own verdict on the pod: phase Failed with a reason, whatever the containers return."""
        self.reason, self.message = reason, message
        self.signal_containers(signal.SIGKILL)

    def signal_containers(self, number: int) -> None:
        for container in self.all_containers:
            if container.process and "running" in container.state:
                container.process.send_signal(number)

    def stop(self, grace_s: float) -> None:
        """SIGTERM now, SIGKILL when `grace_s` has passed. Another call may shorten the time, not lengthen it."""
        if not self.stopping:
            for container in self.containers:
                self.event("Killing", f"Stopping container {container.name}", container=container.name)
            self.signal_containers(signal.SIGTERM)
        self.stopping = True
        asyncio.get_running_loop().call_later(grace_s, self.signal_containers, signal.SIGKILL)

    @property
    def ran_s(self) -> float | None:
        started = [c.started_monotonic for c in self.containers if c.started_monotonic]
        return time.monotonic() - min(started) if started else None

    async def _watch_over(self) -> None:
        """Disruptions that come with time, and the active deadline."""
        limit_s = self.pod["spec"].get("activeDeadlineSeconds") or math.inf
        began = time.monotonic()
        while True:
            await asyncio.sleep(self.kubelet.sync_s)
            lines = [line for c in self.containers for _, line in c.log.lines[-1:]]
            num_lines = max((len(c.log.lines) for c in self.containers), default=0)
            if self.has_processes:
                last = lines[0].decode(errors="replace") if lines else ""
                self.kubelet.disrupt(self, ran_s=self.ran_s, num_lines=num_lines, line=last)
            if time.monotonic() - began >= limit_s and not self.reason:
                self.fail("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")

    def accept(self) -> None:
        """The kubelet sees a pod that the scheduler gave to its node."""
        self.scheduled, self.start_time = True, now()
        for kind in ("Initialized", "ContainersReady", "Ready"):
            self.set_condition(kind, value=False, reason="ContainersNotReady")
        self.init_containers = [
            self._container(spec) for spec in self.pod["spec"].get("initContainers") or []
        ]
        self.containers = [self._container(spec) for spec in self.pod["spec"]["containers"]]
        if self.init_containers:
            for container in self.containers:
                container.wait_for("PodInitializing")
        self.publish()

    def _container(self, spec: dict[str, Any]) -> Container:
        file = self.kubelet.disk.pod_dir(self.pod) / f"termination-log-{spec['name']}"
        container = Container(spec, file, on_line=lambda line: self._on_line(container, line))
        return container

    def _on_line(self, container: Container, line: str) -> None:
        self.kubelet.disrupt(self, ran_s=self.ran_s, num_lines=len(container.log.lines), line=line)

    async def _set_up(self) -> None:
        self.kubelet.disrupt(self, ran_s=None, num_lines=0, line="")
        await asyncio.sleep(self.kubelet.start_s)
        while True:
            try:
                self.volume_dirs = self.kubelet.disk.set_up_volumes(self.store, self.pod)
            except MountError as error:
                self.event("FailedMount", str(error))
                await asyncio.sleep(self.kubelet.sync_s)
            else:
                self.set_condition("PodReadyToStartContainers", value=True)
                return

    async def _run_init_containers(self) -> bool:
        for container in self.init_containers:
            await self._run_once(container)
            if container.exit_code != 0:
                return False
        self.set_condition("Initialized", value=True)
        return True

    async def _run_containers(self) -> None:
        await asyncio.gather(*(self._run_with_restarts(container) for container in self.containers))

    async def _run_with_restarts(self, container: Container) -> None:
        while await self._run_once(container):
            container.restart()
            container.wait_for(
                "CrashLoopBackOff", f"back-off 10s restarting failed container={container.name}"
            )
            self.publish()
            await asyncio.sleep(self.kubelet.restart_s)

    async def _run_once(self, container: Container) -> bool:
        """Run a container to its end. True when the pod's restartPolicy wants it again."""
        if process := await self._start(container):
            exit_code = await process.wait()
            fault = self.kubelet.faults.take(TerminationMessage, lambda f: f.concerns(self.name))
            container.forced_message = fault.data if fault else None
            await self._lag(container)
            container.terminate(exit_code)
        again = self._is_restarted(container)
        if not again and all(c.exit_code is not None for c in self.containers):
            self._settle_phase()
        self.publish()
        container.log.close()
        return again

    def _is_restarted(self, container: Container) -> bool:
        policy = self.pod["spec"].get("restartPolicy", "Always")
        wanted = policy == "Always" or (policy == "OnFailure" and container.exit_code != 0)
        return wanted and container in self.containers and not self.stopping and not self.reason

    async def _lag(self, container: Container) -> None:
        if lag := self.kubelet.faults.take(StatusLag, lambda f: f.concerns(self.name)):
            container.log.close()
            await asyncio.sleep(lag.seconds)

    async def _start(self, container: Container) -> ContainerProcess | None:
        await await_image(self, container)
        env = await self._await_env(container)
        try:
            self.kubelet.disk.mount(container.spec, self.volume_dirs, self.pod["spec"].get("volumes") or [])
            argv = build_argv(container.spec, self.kubelet.images[container.spec["image"]], env)
            cwd = Path(container.spec.get("workingDir") or self.kubelet.disk.pod_dir(self.pod))
            container.start(argv, env, cwd)
        except (StartError, OSError) as error:
            self._refuse_start(container, str(error))
            return None
        self.kubelet.record_start(self, container, argv)
        self.event("Created", f"Created container: {container.name}", container=container.name)
        self.event("Started", f"Started container {container.name}", container=container.name)
        if container in self.containers:
            self.phase = "Running"
            self.set_condition("Ready", value=True)
            self.set_condition("ContainersReady", value=True)
        self.publish()
        return container.process

    def _refuse_start(self, container: Container, why: str) -> None:
        message = (
            f"failed to create containerd task: failed to create shim task: OCI runtime create failed: {why}"
        )
        container.terminate(128, reason="StartError", message=message)
        self.event("Failed", f"Error: {message}", container=container.name)

    async def _await_env(self, container: Container) -> dict[str, str]:
        await self._sit_out_config_fault(container)
        while True:
            try:
                env = build_env(self.store, self.pod, container.spec, self.kubelet.base_env)
            except ConfigError as error:
                await self._wait_for_config(container, str(error))
            else:
                return env | {"TERMINATION_LOG_FILE": str(container.termination_file)}

    async def _sit_out_config_fault(self, container: Container) -> None:
        fault = self.kubelet.faults.take(ContainerConfigError, lambda f: f.concerns(self.name))
        began = time.monotonic()
        while fault and time.monotonic() - began < fault.for_s:
            await self._wait_for_config(container, fault.message)

    async def _wait_for_config(self, container: Container, why: str) -> None:
        container.wait_for("CreateContainerConfigError", why)
        self.publish()
        self.event("Failed", f"Error: {why}", container=container.name)
        await asyncio.sleep(self.kubelet.sync_s)

    def _conclude(self) -> None:
        self._settle_phase()
        self.publish()
        self.kubelet.finish(self)

    def _settle_phase(self) -> None:
        codes = [c.exit_code for c in self.all_containers]
        self.phase = "Succeeded" if not self.reason and all(code == 0 for code in codes) else "Failed"
        for kind in ("Ready", "ContainersReady"):
            finished = "PodCompleted" if self.phase == "Succeeded" else "PodFailed"
            self.set_condition(kind, value=False, reason=finished)
        self.set_condition("PodReadyToStartContainers", value=False)

    def _status(self) -> dict[str, Any]:
        status: dict[str, Any] = {"phase": self.phase}
        status |= {key: value for key in ("reason", "message") if (value := getattr(self, key))}
        if self.scheduled:
            status |= {"startTime": self.start_time, "hostIP": NODE_IP}
            status["containerStatuses"] = [copy.deepcopy(c.status()) for c in self.containers]
        if self.init_containers:
            status["initContainerStatuses"] = [copy.deepcopy(c.status()) for c in self.init_containers]
        if self.phase == "Running":
            status |= {"podIP": POD_IP, "podIPs": [{"ip": POD_IP}]}
        return status

    def _merge_conditions(self, pod: dict[str, Any]) -> list[dict[str, Any]]:
        """Ours, and those that others wrote."""
        others = {c["type"]: c for c in pod["status"].get("conditions") or []}
        return list((others | self.conditions).values())
