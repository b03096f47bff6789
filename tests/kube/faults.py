"""What can go wrong, as a test asks for it: `server.inject(Evicted(after_lines=3))`.

Every fault strikes `times` times and is then spent. `pod` and `path` are regular expressions that are searched for.
Over HTTP the same travels as JSON: `{"kind": "Evicted", "after_lines": 3}` to `/_test/faults`.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

NO_GPU_MESSAGE = (
    "0/1 nodes are available: 1 Insufficient nvidia.com/gpu. preemption: 0/1 nodes are available: "
    "1 No preemption victims found for incoming pod."
)


@dataclass(kw_only=True)
class Fault:
    times: float = 1


@dataclass(kw_only=True)
class RequestFault(Fault):
    """Strikes requests whose path (with query) and method match."""

    path: str = ""
    method: str = ""

    def concerns(self, method: str, path: str) -> bool:
        return bool(re.search(self.path, path) and re.fullmatch(self.method or ".*", method))


@dataclass(kw_only=True)
class HttpError(RequestFault):
    """Answer with this status code and Kubernetes' own Status for it; the request has no effect."""

    status: int = 500
    message: str = ""
    retry_after_s: int | None = None


@dataclass(kw_only=True)
class CutConnection(RequestFault):
    """Close the connection after `after_bytes` of the body, or before any answer.

    :param executed: whether the request takes effect although the client never reads the answer
    """

    after_bytes: int | None = None
    executed: bool = True


@dataclass(kw_only=True)
class SlowResponse(RequestFault):
    """Answer after this long; the request takes effect at the end of it."""

    seconds: float = 1.0


@dataclass(kw_only=True)
class CutStream(RequestFault):
    """:param abrupt: the connection breaks; otherwise the stream ends as if it were complete"""

    abrupt: bool = True


@dataclass(kw_only=True)
class CutWatch(CutStream):
    """End a watch after this many events."""

    after_events: int = 1


@dataclass(kw_only=True)
class CutLog(CutStream):
    """End a log stream after this many lines, although the container goes on."""

    after_lines: int = 1


@dataclass(kw_only=True)
class Denied(Fault):
    """RBAC: 403 for a verb (regular expression) on a resource (`pods`, `pods/log`, `jobsets.jobset.x-k8s.io`)."""

    verb: str = ""
    resource: str = ""
    times: float = math.inf

    def concerns(self, verb: str, resource: str) -> bool:
        return re.fullmatch(self.verb or ".*", verb) is not None and self.resource in ("", resource)


@dataclass(kw_only=True)
class PodFault(Fault):
    """Strikes pods whose name matches."""

    pod: str = ""

    def concerns(self, name: str) -> bool:
        return re.search(self.pod, name) is not None


@dataclass(kw_only=True)
class Unschedulable(PodFault):
    """No node takes the pod for `for_s` seconds; the scheduler says `messages`, one after the other."""

    for_s: float = math.inf
    messages: tuple[str, ...] = (NO_GPU_MESSAGE,)


@dataclass(kw_only=True)
class ImagePullError(PodFault):
    """The registry answers 401, 404, 429 or 503 for `for_s` seconds."""

    status: int = 404
    for_s: float = math.inf


@dataclass(kw_only=True)
class ContainerConfigError(PodFault):
    """The kubelet cannot make the container, with this text, for `for_s` seconds."""

    message: str = 'secret "missing" not found'
    for_s: float = math.inf


@dataclass(kw_only=True)
class TerminationMessage(PodFault):
    """The container's termination file holds these bytes, whatever the process wrote."""

    data: bytes = b""


@dataclass(kw_only=True)
class StatusLag(PodFault):
    """The API shows the end of a container this much later than the end of its log."""

    seconds: float = 1.0


@dataclass(kw_only=True)
class Disruption(PodFault):
    """Something happens to a pod, at once or when its first container has run or written this much.

    :param before_start: when the pod is scheduled and its containers are about to be created
    :param on_line: regular expression that a line of the log matches
    """

    before_start: bool = False
    after_s: float = 0
    after_lines: int = 0
    on_line: str = ""

    def is_due(self, *, ran_s: float | None, num_lines: int, line: str) -> bool:
        """:param ran_s: None when no container runs yet"""
        if ran_s is None:
            return self.before_start
        if self.on_line and not re.search(self.on_line, line):
            return False
        return not self.before_start and ran_s >= self.after_s and num_lines >= self.after_lines


@dataclass(kw_only=True)
class Evicted(Disruption):
    """The kubelet evicts the pod because the node runs low; `message` is the kubelet's text."""

    message: str = (
        "The node was low on resource: ephemeral-storage. Threshold quantity: 107374182400, available: 98123456Ki. "
        "Container base was using 1498072868Ki, request is 0, has larger consumption of ephemeral-storage. "
    )


@dataclass(kw_only=True)
class OOMKilled(Disruption):
    """The kernel kills the container at its memory limit."""


@dataclass(kw_only=True)
class Killed(Disruption):
    """The container's first process gets a signal that nobody explains."""

    signal: int = 9


@dataclass(kw_only=True)
class Preempted(Disruption):
    """The scheduler makes room for a pod of higher priority: DisruptionTarget, SIGTERM, gone."""

    reason: ClassVar[str] = "PreemptionByScheduler"
    message: ClassVar[str] = "default-scheduler: preempting to accommodate a higher priority pod"


@dataclass(kw_only=True)
class Drained(Disruption):
    """Evicted through the API: DisruptionTarget, SIGTERM, gone.

    :param cordon: nothing is scheduled any more, as `kubectl drain` leaves the node
    """

    cordon: bool = True
    reason: ClassVar[str] = "EvictionByEvictionAPI"
    message: ClassVar[str] = "Eviction API: evicting"


@dataclass(kw_only=True)
class NodeLost(Disruption):
    """The node goes silent: the process dies unseen, and the pod stays Terminating for `gone_after_s` seconds."""

    gone_after_s: float = 1.0


@dataclass(kw_only=True)
class Vanished(Disruption):
    """The pod is deleted by force: killed, and 404 from now on."""


AnyFault = TypeVar("AnyFault", bound=Fault)


class Faults:
    """The faults that still wait for their victims."""

    def __init__(self) -> None:
        self._waiting: list[Fault] = []

    def add(self, fault: Fault) -> None:
        self._waiting.append(fault)

    def clear(self) -> None:
        self._waiting.clear()

    def take(self, kind: type[AnyFault], strikes: Callable[[AnyFault], bool]) -> AnyFault | None:
        """The first waiting fault of this kind that strikes; it has then struck once more."""
        for fault in self._waiting:
            if isinstance(fault, kind) and strikes(fault):
                fault.times -= 1
                if fault.times <= 0:
                    self._waiting.remove(fault)
                return fault
        return None


def decode_fault(document: dict[str, Any]) -> Fault:
    """The fault that a JSON document names by `kind`; `data` is base64. :raises ValueError: for an unknown kind"""
    kinds = {kind.__name__: kind for kind in _concrete(Fault)}
    fields = dict(document)
    kind = fields.pop("kind", None)
    if kind not in kinds:
        raise ValueError(f"Fault kind {kind!r} is not known. Use one of {', '.join(sorted(kinds))}.")
    if "data" in fields:
        fields["data"] = base64.b64decode(fields["data"])
    if "messages" in fields:
        fields["messages"] = tuple(fields["messages"])
    return kinds[kind](**fields)


def _concrete(kind: type[Fault]) -> Iterator[type[Fault]]:
    children = kind.__subclasses__()
    if not children:
        yield kind
    for child in children:
        yield from _concrete(child)
