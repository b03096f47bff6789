"""What each disruption does to a pod, step by step as Kubernetes does it."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from tests.kube.events import SCHEDULER, TAINT_MANAGER, record_event
from tests.kube.faults import Disruption, Drained, Evicted, Killed, NodeLost, OOMKilled, Preempted, Vanished
from tests.kube.scheduling import NODE

if TYPE_CHECKING:
    from tests.kube.pod_worker import PodWorker


def strike(worker: PodWorker, fault: Disruption) -> None:
    """Let `fault` happen to the pod now."""
    match fault:
        case Evicted():
            _evict(worker, fault.message)
        case OOMKilled():
            _kill_for_memory(worker)
        case Killed():
            worker.signal_containers(fault.signal)
        case Preempted() | Drained():
            _displace(worker, fault)
        case NodeLost():
            _lose_node(worker, fault.gone_after_s)
        case Vanished():
            _vanish(worker)


def _evict(worker: PodWorker, message: str) -> None:
    worker.set_condition("DisruptionTarget", value=True, reason="TerminationByKubelet", message=message)
    worker.event("Evicted", message)
    worker.fail("Evicted", message)


def _kill_for_memory(worker: PodWorker) -> None:
    for container in worker.containers:
        container.end_reason = "OOMKilled"
    worker.signal_containers(signal.SIGKILL)


def _displace(worker: PodWorker, fault: Preempted | Drained) -> None:
    """The pod is marked as a disruption's target and deleted with its grace; nobody makes it again."""
    pod = worker.current()
    if pod is None:
        return
    if isinstance(fault, Drained) and fault.cordon:
        worker.kubelet.cordon()
    elif isinstance(fault, Preempted):
        worker.event("Preempted", f"Preempted by pod 0c3e5a1c-high-priority on node {NODE}", source=SCHEDULER)
    worker.set_condition("DisruptionTarget", value=True, reason=fault.reason, message=fault.message)
    worker.publish()
    worker.kubelet.delete(worker.current() or pod)


def _lose_node(worker: PodWorker, gone_after_s: float) -> None:
    """The node controller's view: not ready, then deleted by the taint manager, then collected by force.

    The process dies with the node, but no kubelet is left to say so: the container stays "running" in the API.
    """
    worker.event("NodeNotReady", "Node is not ready", source="node-controller")
    worker.set_condition("Ready", value=False, reason="NodeNotReady")
    worker.reason = "NodeLost"
    worker.message = f"Node {NODE} which was running pod {worker.name} is unresponsive"
    worker.publish()
    worker.kubelet.silence(worker)
    worker.kubelet.in_background(_collect_lost_pod(worker, gone_after_s))


async def _collect_lost_pod(worker: PodWorker, gone_after_s: float) -> None:
    await asyncio.sleep(gone_after_s / 2)
    why = "Taint manager: deleting due to NoExecute taint"
    worker.set_condition("DisruptionTarget", value=True, reason="DeletionByTaintManager", message=why)
    worker.publish(even_if_silent=True)
    if pod := worker.current():
        worker.kubelet.mark_deleted(pod, grace_s=worker.kubelet.grace_of(pod))
        message = f"Marking for deletion Pod {worker.namespace}/{worker.name}"
        record_event(worker.store, pod, "TaintManagerEviction", message, source=TAINT_MANAGER)
    await asyncio.sleep(gone_after_s / 2)
    _vanish(worker)


def _vanish(worker: PodWorker) -> None:
    if pod := worker.current():
        worker.kubelet.vanish(pod)
