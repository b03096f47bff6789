"""Tune a model as a job of Kubernetes' own engines: queued by Kueue, on one node or several, restarted where it stopped."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_sft.engines.engine import Engine, Manifest
from airflow_provider_sft.engines.job_name import name_job
from airflow_provider_sft.engines.plan import JobPlan, plan_job
from airflow_provider_sft.engines.registry import AUTO
from airflow_provider_sft.failures import LaunchFailure
from airflow_provider_sft.job_run import JobRun
from airflow_provider_sft.job_watch import Limits
from airflow_provider_sft.operators.kubernetes import SFTTrainerOperator
from airflow_provider_sft.pod_outcome import to_plain

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from kubernetes.client import models as k8s

_DAY_S = 24 * 3600


class SFTJobOperator(JobRun, SFTTrainerOperator):
    """Tunes a language model as a job that an engine of the cluster runs.

    Every parameter of :class:`SFTTrainerOperator` is there and means the same, for each node; these are new:

    :param engine: `job`, `pytorchjob`, `jobset`, `trainjob`, or `auto`: a Job for one node, else the best that the
        cluster serves (templated)
    :param num_nodes: how many pods of `gpus` each. More than one needs `output_dir` on a ReadWriteMany volume (templated)
    :param max_restarts: by the engine, from the newest valid checkpoint, without an Airflow retry
    :param queue_timeout_seconds: for one wait in the queue, or for nodes where there is no queue
    :param startup_timeout_seconds: from there until all nodes run
    :param run_timeout_seconds: of running, whatever came between; None has no limit
    :param workload_timeout_seconds: within which Kueue takes note of a job with a `queue_name`
    :param keep_finished_seconds: how long a finished job and its pods stay for reading
    :param log_all_nodes: the log of every node, not of the first alone
    """

    template_fields: Sequence[str] = ("engine", "num_nodes", *SFTTrainerOperator.template_fields)

    def __init__(  # noqa: PLR0913  # keyword-only, as the parent
        self,
        *,
        engine: str = AUTO,
        num_nodes: int | str = 1,
        max_restarts: int = 3,
        queue_timeout_seconds: float = 7 * _DAY_S,
        startup_timeout_seconds: int = 3600,
        run_timeout_seconds: float | None = None,
        workload_timeout_seconds: float = 120,
        keep_finished_seconds: int = 7 * _DAY_S,
        log_all_nodes: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(startup_timeout_seconds=startup_timeout_seconds, **kwargs)
        self.engine = engine
        self.num_nodes = num_nodes
        self.max_restarts = max_restarts
        self.queue_timeout_seconds = queue_timeout_seconds
        self.run_timeout_seconds = run_timeout_seconds
        self.workload_timeout_seconds = workload_timeout_seconds
        self.keep_finished_seconds = keep_finished_seconds
        self.log_all_nodes = log_all_nodes

    @property
    def nodes_wanted(self) -> int:
        try:
            return int(self.num_nodes)
        except ValueError:
            raise LaunchFailure(f"num_nodes is {self.num_nodes!r}. Give a whole number.") from None

    @property
    def output_dir_wanted(self) -> str | None:
        """None where the config is on a volume, out of Airflow's sight."""
        return None if self.config is None else self.check_config().get("output_dir")

    @property
    def limits(self) -> Limits:
        return Limits(
            queue_s=self.queue_timeout_seconds,
            startup_s=self.startup_timeout_seconds,
            run_s=self.run_timeout_seconds,
            workload_s=self.workload_timeout_seconds,
        )

    def build_pod_request_obj(self, context: Context | None = None, **options: Any) -> k8s.V1Pod:
        """The pod of each node, under the job's name."""
        named = copy.copy(self)
        named.name = name_job(self.name or self.task_id, room_for_suffix=self.random_name_suffix)
        return super(SFTJobOperator, named).build_pod_request_obj(context, **options)

    def plan(self, pod: k8s.V1Pod) -> JobPlan:
        return plan_job(
            to_plain(pod),
            container=self.base_container_name,
            num_nodes=self.nodes_wanted,
            gpus=self.gpus_wanted,
            max_restarts=self.max_restarts,
            ttl_s=self.keep_finished_seconds,
        )

    def build_manifests(self, engine: Engine, pod: k8s.V1Pod) -> list[Manifest]:
        """In the order of creation; the last one is the job. A ConfigMap of a long config is not among them."""
        plan = self.plan(pod)
        if plan.num_nodes > 1:
            self.log.info("%d nodes share output_dir: its volume must be ReadWriteMany.", plan.num_nodes)
        return engine.build(plan)
