"""How a pod gets its node: gates, faults, missing claims and a cordoned node first, then Scheduled."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING

from tests.kube.events import SCHEDULER
from tests.kube.faults import Unschedulable
from tests.kube.quantities import parse_quantity
from tests.kube.resources import CLAIMS, NODES, PODS

if TYPE_CHECKING:
    from tests.kube.pod_worker import PodWorker

NODE = "node-1"


async def await_node(worker: PodWorker) -> None:
    """Return when the pod is bound to the one node."""
    await _await_gates(worker)
    await _sit_out_fault(worker)
    while why := _missing_claim(worker) or _cordon(worker) or _insufficient(worker):
        await _refuse(worker, f"0/1 nodes are available: {why}.")
    _bind(worker)


async def _await_gates(worker: PodWorker) -> None:
    while (pod := worker.current()) and pod["spec"].get("schedulingGates"):
        why = "Scheduling is blocked due to non-empty scheduling gates"
        worker.set_condition("PodScheduled", value=False, reason="SchedulingGated", message=why)
        worker.publish()
        await asyncio.sleep(worker.kubelet.sync_s)


async def _sit_out_fault(worker: PodWorker) -> None:
    fault = worker.kubelet.faults.take(Unschedulable, lambda f: f.concerns(worker.name))
    began = time.monotonic()
    while fault and (passed := time.monotonic() - began) < fault.for_s:
        index = int(passed / fault.for_s * len(fault.messages)) if math.isfinite(fault.for_s) else 0
        await _refuse(worker, fault.messages[index])


async def _refuse(worker: PodWorker, message: str) -> None:
    old = worker.conditions.get("PodScheduled", {}).get("message")
    worker.set_condition("PodScheduled", value=False, reason="Unschedulable", message=message)
    worker.publish()
    if old != message:
        worker.event("FailedScheduling", message, source=SCHEDULER)
    await asyncio.sleep(worker.kubelet.sync_s)


def _missing_claim(worker: PodWorker) -> str:
    for volume in worker.pod["spec"].get("volumes") or []:
        claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
        if claim and not worker.store.find(CLAIMS, worker.namespace, claim):
            return f'persistentvolumeclaim "{claim}" not found'
    return ""


def _cordon(worker: PodWorker) -> str:
    node = worker.store.get(NODES, "", NODE)
    return "1 node(s) were unschedulable" if node["spec"].get("unschedulable") else ""


def _insufficient(worker: PodWorker) -> str:
    """Extended resources that the node never had, or not as many; who else uses them is not counted."""
    allocatable = worker.store.get(NODES, "", NODE)["status"]["allocatable"]
    for container in worker.pod["spec"]["containers"]:
        for name, amount in ((container.get("resources") or {}).get("limits") or {}).items():
            if "/" in name and parse_quantity(amount) > parse_quantity(allocatable.get(name, "0")):
                return f"1 Insufficient {name}"
    return ""


def _bind(worker: PodWorker) -> None:
    pod = worker.store.get(PODS, worker.namespace, worker.name)
    worker.store.update(PODS, pod | {"spec": pod["spec"] | {"nodeName": NODE}})
    worker.pod["spec"]["nodeName"] = NODE
    worker.set_condition("PodScheduled", value=True)
    worker.accept()
    where = f"Successfully assigned {worker.namespace}/{worker.name} to {NODE}"
    worker.event("Scheduled", where, source=SCHEDULER)
