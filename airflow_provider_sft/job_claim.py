"""Which job is this task's: found again by identity, or created exactly once, with what it needs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from kubernetes.client import models as k8s

from airflow_provider_sft.api_patience import api_status, describe_api_error
from airflow_provider_sft.config_map import config_map_name, create_config_map
from airflow_provider_sft.engines.engine import Engine, Manifest
from airflow_provider_sft.engines.older_jobset import LOSS, fit_older_jobset, is_older_jobset
from airflow_provider_sft.engines.outcome import failure_of_job
from airflow_provider_sft.engines.reading import read_job
from airflow_provider_sft.engines.state import Stage, classify
from airflow_provider_sft.engines.summary import find_end_time
from airflow_provider_sft.failures import LaunchFailure, PermanentFailure, TransientFailure
from airflow_provider_sft.job_api import JobApi
from airflow_provider_sft.pod_claim import CONFIG_ANNOTATION, RUN_ID_ANNOTATION
from airflow_provider_sft.quota import find_full_quota
from airflow_provider_sft.try_claim import CLAIM_ANNOTATION, claim_patch

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_sft.job_run import JobRun

_LEAVING_POLL_S = 2.0
# Beyond the grace period: kubelets may be slow to report.
_LEAVING_MARGIN_S = 120.0


class JobClaim:
    """One task instance's claim on its job, by the rules of :class:`PodClaim`."""

    def __init__(self, operator: JobRun, engine: Engine, context: Context, namespace: str) -> None:
        self._operator, self._engine, self._context = operator, engine, context
        self._api = JobApi(operator, engine, namespace)

    def find(self, request: Manifest) -> Manifest | None:
        """The job that an earlier try or worker left."""
        if not self._operator.reattach_on_restart:
            return None
        for job in self._own_jobs(request):
            metadata = job["metadata"]
            if "deletionTimestamp" in metadata:
                self._wait_until_gone(job)
            elif self._serves(job, request):
                self._take_over(metadata["name"])
                return job
            elif _is_finished(job):
                self._api.patch(
                    metadata["name"], {"metadata": {"labels": {self._operator.POD_CHECKED_KEY: "True"}}}
                )
            else:
                self._api.delete(metadata["name"], metadata["uid"])
                self._wait_until_gone(job)
        return None

    def create(self, manifests: Sequence[Manifest], pod: k8s.V1Pod) -> Manifest:
        """The job of these manifests, once: an answer that was lost does not create a second one.

        :raises QuotaFullError: there is no room for one of them now
        :raises LaunchFailure: the API server refuses one of them
        """
        config_text = self._operator.long_config()
        if config_text:
            create_config_map(self._operator, pod, config_text)
        *before, request = manifests
        request["metadata"].setdefault("annotations", {})[CLAIM_ANNOTATION] = self._operator._claim  # noqa: SLF001
        config_map = {"kind": "ConfigMap", "metadata": {"name": config_map_name(pod.metadata.name)}}
        needed = [*before, *([config_map] if config_text else [])]
        try:
            job = self._create_all(manifests)
        except Exception as error:  # noqa: BLE001  # of either kind, told apart by its status
            self._take_back(needed)
            raise find_full_quota(error) or _refusal(error, self._engine) from None
        name = job["metadata"]["name"]
        if not _is_same_run(job, request):
            raise LaunchFailure(
                f"A {self._engine.kind} named {name!r} exists already and is not this task's. Leave random_name_suffix on."
            )
        self._operator.log.info(
            "%s %s is created in namespace %s.", self._engine.kind, name, job["metadata"]["namespace"]
        )
        for owned in needed:
            self._adopt(owned, job)
        if not self._engine.expires:
            self._sweep(request)
        return job

    def _sweep(self, request: Manifest) -> None:
        """This task's jobs, of all its runs, whose time to be read is over. What they own goes with them."""
        labels, keep_s = request["metadata"]["labels"], self._operator.keep_finished_seconds
        try:
            jobs = self._api.list_jobs(f"dag_id={labels['dag_id']},task_id={labels['task_id']}")
        except Exception as error:  # noqa: BLE001  # the next run sweeps again
            self._operator.log.warning("Old jobs are not looked for: %s", describe_api_error(error))
            return
        for job in jobs:
            if (age_s := _finished_for_s(job)) is not None and age_s >= keep_s:
                self._api.delete(job["metadata"]["name"], job["metadata"]["uid"])

    def _create_all(self, manifests: Sequence[Manifest]) -> Manifest:
        try:
            return [self._api.create(manifest) for manifest in manifests][-1]
        except Exception as error:
            if not is_older_jobset(describe_api_error(error)):
                raise
        self._operator.log.warning(LOSS)
        return [self._api.create(manifest) for manifest in fit_older_jobset(manifests)][-1]

    def _adopt(self, owned: Manifest, job: Manifest) -> None:
        try:
            self._operator.patiently(lambda: self._api.adopt(owned, job))
        except Exception as error:  # noqa: BLE001  # the job runs without
            name = f"{owned['kind']} {owned['metadata']['name']}"
            self._operator.log.warning("%s will outlive its job: %s", name, describe_api_error(error))

    def _take_back(self, needed: Sequence[Manifest]) -> None:
        """What was made for a job that is not to be."""
        for manifest in needed:
            try:
                self._api.delete_owned(manifest)
            except Exception as error:  # noqa: BLE001  # the refusal counts more
                name = f"{manifest['kind']} {manifest['metadata']['name']}"
                self._operator.log.warning("%s is left behind: %s", name, describe_api_error(error))

    def _own_jobs(self, request: Manifest) -> list[Manifest]:
        """The newest first."""
        selector = self._operator._build_find_pod_label_selector(self._context)  # noqa: SLF001  # the parent's
        try:
            jobs = self._api.list_jobs(selector)
        except Exception as error:  # noqa: BLE001  # as in `create`
            raise _refusal(error, self._engine) from None
        ours = [job for job in jobs if _is_same_run(job, request)]
        return sorted(ours, key=lambda job: str(job["metadata"]["creationTimestamp"]), reverse=True)

    def _serves(self, job: Manifest, request: Manifest) -> bool:
        log, name = self._operator.log, f"{self._engine.kind} {job['metadata']['name']}"
        same_config = _annotation(job, CONFIG_ANNOTATION) == _annotation(request, CONFIG_ANNOTATION)
        if not same_config or read_job(job).num_nodes != read_job(request).num_nodes:
            log.info("%s runs another config, or on other nodes; it is replaced.", name)
            return False
        if not _is_finished(job):
            log.info("%s of an earlier try still goes on; this try follows it.", name)
            return True
        pods = self._api.list_pods(job)
        state = classify(job, None, pods)
        failure = failure_of_job(state, job, None, pods)
        if (state.stage is Stage.SUCCEEDED and failure is None) or isinstance(failure, PermanentFailure):
            log.info("%s ended while nobody watched; its outcome counts.", name)
            return True
        log.info("%s ended while nobody watched: %s", name, failure)
        return False

    def _take_over(self, name: str) -> None:
        """As :meth:`PodClaim._take_over`."""
        try:
            self._api.patch(name, claim_patch(self._operator._claim))  # noqa: SLF001  # of one family
        except Exception as error:  # noqa: BLE001  # it can be followed without
            self._operator.log.warning(
                "%s %s cannot be marked as this try's: %s", self._engine.kind, name, describe_api_error(error)
            )

    def _wait_until_gone(self, job: Manifest) -> None:
        """The nodes of a job that is being deleted save, and hold output_dir meanwhile."""
        operator, metadata = self._operator, job["metadata"]
        operator.log.info(
            "%s %s of an earlier try is being deleted; waiting until it has saved.",
            self._engine.kind,
            metadata["name"],
        )
        end_s = time.monotonic() + (operator.termination_grace_period or 0) + _LEAVING_MARGIN_S
        while time.monotonic() < end_s:
            current = self._api.read(metadata["name"])
            if current is None or current["metadata"]["uid"] != metadata["uid"]:
                return
            time.sleep(min(_LEAVING_POLL_S, operator.poll_interval))
        raise TransientFailure(
            f"{self._engine.kind} {metadata['name']} of an earlier try is still being deleted; is a node lost? "
            "The retry looks again."
        )


def _is_finished(job: Manifest) -> bool:
    reading = read_job(job)
    return bool(reading.succeeded or reading.failed)


def _finished_for_s(job: Manifest) -> float | None:
    """By this machine's clock; None while it is not finished, or being deleted."""
    ended = find_end_time(job)
    if ended is None or "deletionTimestamp" in job["metadata"]:
        return None
    return (datetime.now(UTC) - datetime.fromisoformat(ended)).total_seconds()


def _is_same_run(job: Manifest, request: Manifest) -> bool:
    run_id = _annotation(request, RUN_ID_ANNOTATION)
    return run_id is not None and _annotation(job, RUN_ID_ANNOTATION) == run_id


def _annotation(job: Manifest, name: str) -> str | None:
    value: str | None = (job["metadata"].get("annotations") or {}).get(name)
    return value


def _refusal(error: Exception, engine: Engine) -> Exception:
    """Without the request, which holds the config and the environment."""
    said = describe_api_error(error)
    if api_status(error) is None:
        return error
    return LaunchFailure(f"Kubernetes refuses the {engine.kind}. It says {said}")
