"""What an engine is: how it is called, who brings it, and what it makes of a plan."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_sft.engines.plan import JobPlan

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Engine:
    """One way to run a job.

    :param container: how it calls the trainer's container
    :param source: who brings it to a cluster
    :param build: the job's manifests in the order of creation; the last one is the job
    :param ends_at: the exit codes at which it ends the job by itself
    :param expires: whether it deletes a finished job by itself, when its time to be read is over
    :param select_pods: from the job's manifest to the label selector of its pods
    """

    name: str
    group: str
    version: str
    plural: str
    kind: str
    container: str
    source: str
    build: Callable[[JobPlan], list[Manifest]]
    ends_at: Collection[int]
    expires: bool
    select_pods: Callable[[Manifest], str]

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}"
