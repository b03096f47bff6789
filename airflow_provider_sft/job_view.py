"""What is seen of a job: three feeds, and the state they make together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from airflow_provider_sft.engines.engine import Engine, Manifest
from airflow_provider_sft.engines.kueue import QUEUE_GROUP, queue_of, select_workload
from airflow_provider_sft.engines.nodes import newest_by_rank
from airflow_provider_sft.engines.state import JobState, classify
from airflow_provider_sft.failures import PermanentFailure
from airflow_provider_sft.job_feed import Feed, Source, Wire
from airflow_provider_sft.pod_outcome import Pod, container_state, failure_of_pod, has_ended, trim_pod


class JobView:
    """
    :param job: as it was when the watch began
    :param on_change: called after each change
    :param workloads_version: of Kueue's API; empty where the cluster does not serve it
    """

    def __init__(
        self,
        engine: Engine,
        job: Manifest,
        *,
        wire: Wire,
        on_change: Callable[[], None],
        poll_interval_s: float,
        workloads_version: str,
    ) -> None:
        metadata = job["metadata"]
        namespace = metadata["namespace"]
        self._engine, self._uid = engine, metadata["uid"]
        self._ended_pods: dict[str, Pod] = {}  # of those that are gone
        named = {"fieldSelector": f"metadata.name={metadata['name']}"}
        path = f"/apis/{engine.api_version}/namespaces/{namespace}/{engine.plural}"
        pods_path = f"/api/v1/namespaces/{namespace}/pods"

        def feed(what: str, path: str, query: dict[str, str]) -> Feed:
            return Feed(Source(what, path, query), wire, on_change, poll_interval_s)

        self._jobs = feed(engine.plural, path, named)
        self._pods = feed("pods", pods_path, {"labelSelector": engine.select_pods(job)})
        self._workloads: Feed | None = None
        if workloads_version and queue_of(job):
            path = f"/apis/{QUEUE_GROUP}/{workloads_version}/namespaces/{namespace}/workloads"
            self._workloads = feed("Kueue's workloads", path, {"labelSelector": select_workload(job)})
        self.feeds = [feed for feed in (self._jobs, self._pods, self._workloads) if feed]

    @property
    def is_settled(self) -> bool:
        return all(feed.is_settled for feed in self.feeds)

    @property
    def refusal(self) -> str:
        """Why the job itself is out of sight."""
        return self._jobs.refusal

    @property
    def job(self) -> Manifest | None:
        for job in self._jobs.objects:
            if job["metadata"]["uid"] == self._uid:
                return {**job, "kind": self._engine.kind}
        return None

    @property
    def workload(self) -> Manifest | None:
        found = self._workloads.objects if self._workloads else []
        return max(found, key=lambda each: str(each["metadata"].get("creationTimestamp")), default=None)

    @property
    def has_workload(self) -> bool | None:
        """None where it may not be read."""
        return None if self._workloads and self._workloads.refusal else self.workload is not None

    @property
    def may_see_pods(self) -> bool:
        return self._pods.is_read

    @property
    def pods_refusal(self) -> str:
        """Why pods are out of sight; empty where none was to be seen."""
        return self._pods.refusal

    @property
    def pods(self) -> list[Pod]:
        """Those that exist."""
        return self._pods.objects

    @property
    def all_pods(self) -> list[Pod]:
        """Those that ended and are gone too, as they last were."""
        for pod in self._pods.take_removed():
            if has_ended(pod, self._engine.container):
                self._ended_pods[pod["metadata"]["uid"]] = {**trim_pod(pod), "metadata": pod["metadata"]}
        alive = {pod["metadata"]["uid"] for pod in self.pods}
        return [*(pod for uid, pod in self._ended_pods.items() if uid not in alive), *self.pods]

    @property
    def pending_pods(self) -> list[Pod]:
        container = self._engine.container
        return [
            pod
            for pod in newest_by_rank(self.pods, container).values()
            if not has_ended(pod, container)
            and "running" not in container_state(pod, container)
            and "deletionTimestamp" not in pod["metadata"]
        ]

    def classify(self) -> JobState:
        return classify(self.job, self.workload, self._telling_pods() if self.may_see_pods else None)

    async def refresh_pods(self) -> None:
        """The watches are not in step: a job may be done before its pods are seen to be."""
        if self.may_see_pods:
            await self._pods.refresh()

    def _telling_pods(self) -> Sequence[Pod]:
        """An engine may delete a failed pod at once: what it says for good is still true."""
        gone = [pod for pod in self.all_pods if pod["metadata"]["uid"] in self._ended_pods]
        return [*(pod for pod in gone if self._failed_for_good(pod)), *self.pods]

    def _failed_for_good(self, pod: Pod) -> bool:
        return isinstance(failure_of_pod(pod, container=self._engine.container), PermanentFailure)
