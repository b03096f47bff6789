"""Events, as the scheduler and the kubelet write them; a repeated one is counted, not doubled."""

from __future__ import annotations

import time
from typing import Any

from tests.kube.resources import EVENTS
from tests.kube.store import Store, now

SCHEDULER, KUBELET, TAINT_MANAGER = "default-scheduler", "kubelet", "taint-eviction-controller"


def record_event(
    store: Store,
    obj: dict[str, Any],
    reason: str,
    message: str,
    *,
    source: str = KUBELET,
    container: str = "",
) -> None:
    """An event about `obj`. Its type follows from the reason, as it does in Kubernetes."""
    metadata = obj["metadata"]
    involved = {
        "apiVersion": obj["apiVersion"],
        "kind": obj["kind"],
        "name": metadata["name"],
        "namespace": metadata.get("namespace", ""),
        "uid": metadata["uid"],
        "resourceVersion": metadata["resourceVersion"],
    }
    if container:
        involved["fieldPath"] = f"spec.containers{{{container}}}"
    namespace = metadata.get("namespace", "default")
    for event in store.list(EVENTS, namespace):
        same = (event["reason"], event["message"], event["involvedObject"]["uid"])
        if same == (reason, message, metadata["uid"]):
            store.update(EVENTS, event | {"count": event["count"] + 1, "lastTimestamp": now()})
            return
    event = {
        "metadata": {"name": f"{metadata['name']}.{time.time_ns():x}"},
        "involvedObject": involved,
        "reason": reason,
        "message": message,
        "type": "Normal" if reason in _NORMAL else "Warning",
        "source": {"component": source},
        "reportingComponent": source,
        "firstTimestamp": now(),
        "lastTimestamp": now(),
        "count": 1,
    }
    store.create(EVENTS, namespace, event)


_NORMAL = frozenset(
    {
        "Created",
        "Killing",
        "NodeNotSchedulable",
        "Pulled",
        "Pulling",
        "Scheduled",
        "Started",
        "TaintManagerEviction",
    }
)
