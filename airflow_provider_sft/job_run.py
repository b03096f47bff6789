"""One training as one job, across workers, triggerers and tries: found again, followed, concluded."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.common.compat.sdk import AirflowSkipException
from kubernetes.client import models as k8s

from airflow_provider_sft import failures
from airflow_provider_sft.contract.names import RESULT_FILE
from airflow_provider_sft.contract.outcome import Result
from airflow_provider_sft.engines.engine import Engine, Manifest
from airflow_provider_sft.engines.registry import choose_engine, find_engine
from airflow_provider_sft.failures import (
    InterruptedFailure,
    LaunchFailure,
    TrainingFailure,
    TransientFailure,
    describe_position,
)
from airflow_provider_sft.job_api import JobApi, ServedEngines
from airflow_provider_sft.job_callbacks import NodeCallbacks, to_model
from airflow_provider_sft.job_claim import JobClaim
from airflow_provider_sft.job_watch import Limits
from airflow_provider_sft.metrics import task_tags
from airflow_provider_sft.pod_run import PodRun
from airflow_provider_sft.progress_report import ProgressReport, store_progress
from airflow_provider_sft.result_report import announce_result, announcing
from airflow_provider_sft.triggers.job import SFTJobTrigger
from airflow_provider_sft.try_claim import new_claim

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.triggers.base import BaseTrigger

# A watcher that held out this long did its work; only quick failures in a row count.
_QUICK_S = 60.0
_MAX_QUICK_FAILURES = 10
_GLANCE_S = 0.5


class JobRun(PodRun):
    """What of :class:`PodRun` is another thing where an engine makes the pods. `self.pod` is the job's identity."""

    engine: str
    log_all_nodes: bool
    keep_finished_seconds: int
    _engine: Engine
    _event: dict[str, Any]
    _output_dir: str | None = None
    _told: NodeCallbacks | None = None
    _context: Context

    @property
    def nodes_wanted(self) -> int:
        raise NotImplementedError

    @property
    def limits(self) -> Limits:
        raise NotImplementedError

    @property
    def output_dir_wanted(self) -> str | None:
        raise NotImplementedError

    def build_manifests(self, engine: Engine, pod: k8s.V1Pod) -> list[Manifest]:
        raise NotImplementedError

    def tune(self, context: Context) -> Result | None:
        """Find or create the job, then follow it: here, or in the triggerer."""
        self._claim = new_claim()
        pod = self.build_pod_request_obj(context)
        self._call_back("on_pod_manifest_created", context, pod_request=pod)
        self._output_dir = self.output_dir_wanted
        self._engine = choose_engine(self.engine, num_nodes=self.nodes_wanted, served=ServedEngines(self))
        manifests = self.build_manifests(self._engine, pod)
        claim = JobClaim(self, self._engine, context, pod.metadata.namespace)
        with self._working():
            job = self._when_there_is_room(lambda: claim.find(manifests[-1]) or claim.create(manifests, pod))
            self._take_identity(job["metadata"])
            told = {"job_name": job["metadata"]["name"], "job_namespace": job["metadata"]["namespace"]}
            for key, value in {**told, "job_engine": self._engine.name}.items():
                context["ti"].xcom_push(key=key, value=value)
            self._refuse_if_killed()
            return self._follow_job(context)

    @property
    def queue_limit_s(self) -> float:
        return min(self.limits.queue_s, super().queue_limit_s)

    def defer(self, *, trigger: BaseTrigger, **options: Any) -> None:  # type: ignore[override]  # it may stay here
        """The parent knows how to make a trigger; ours takes its arguments. A worker that does not defer runs it."""
        _, arguments = trigger.serialize()
        arguments["base_container_name"] = self._engine.container
        watcher = SFTJobTrigger(
            **arguments,
            pod_uid=self._identity.uid,
            claim=self._claim,
            engine=self._engine.name,
            limits=asdict(self.limits),
            log_all_nodes=self.log_all_nodes,
        )
        if self.deferrable:
            super(PodRun, self).defer(trigger=watcher, **options)
        store = self._context.get("task_state_store")
        container = self._engine.container
        report = ProgressReport(
            self.log, store, lambda line: self._form_line(container, line), task_tags(self._context)
        )
        callbacks = self._node_callbacks()
        watcher.report_to(report, self._form_line, callbacks)
        self._event = asyncio.run(self._first_event(watcher, callbacks))
        report.store()
        if callbacks and callbacks.error:
            raise callbacks.error

    def trigger_reentry(self, context: Context, event: dict[str, Any]) -> Result | None:
        """Back from the triggerer: `SFTJobTrigger` tells what it saw."""
        with announcing(self, context), self._working():
            self._engine, self._output_dir = find_engine(event["engine"]), event.get("output_dir")
            self._take_identity(event)
            self._claim = event.get("claim", "")
            return self._conclude_job(context, event)

    def _end_what_runs(self) -> None:
        """What a task does to its job that is told to end, once."""
        if self._is_ended or self.pod is None:
            return
        self._is_ended = True
        self.log.info("The task is told to end; %s.", self._fate)
        if not self._keeps_job:
            self._delete_job()

    @property
    def _fate(self) -> str:
        if self.pod is None:
            return "no job was created"
        if self._keeps_job:
            return "the job goes on, as on_kill_action says"
        return f"the job is deleted, and its nodes have {self.termination_grace_period} s to save"

    @property
    def _keeps_job(self) -> bool:
        return bool(getattr(self, "on_kill_action", "") == "keep_pod")  # not in all provider versions

    def _refuse_if_killed(self) -> None:
        if not self._killed:
            return
        position = describe_position(None, self._progress)
        sentences = [f"The task was told to end; {self._fate}.", position, "The retry resumes."]
        raise InterruptedFailure(" ".join(filter(None, sentences)))

    def _node_callbacks(self) -> NodeCallbacks | None:
        if self.callbacks and self._told is None:  # a watch that is taken up again tells nothing twice
            call_back = partial(self._call_back, context=self._context)
            self._told = NodeCallbacks(self._engine, call_back, self._call_back_line)
        return self._told

    async def _first_event(self, watcher: SFTJobTrigger, callbacks: NodeCallbacks | None) -> dict[str, Any]:
        """What the watcher tells in the end, which comes soon once the task is told to end."""
        following = asyncio.create_task(_take_first(watcher))
        while not (await asyncio.wait([following], timeout=_GLANCE_S))[0]:
            if (self._killed and self._keeps_job) or (callbacks and callbacks.error):
                following.cancel()
                await asyncio.wait([following])
                return {"status": "left"}
            if self._killed and not self._is_ended:
                self._is_ended = True
                await watcher.on_kill()
        return following.result()

    def _follow_job(self, context: Context) -> Result | None:
        self._context = context
        told = {"engine": self._engine.name, "output_dir": self._output_dir}
        self.trigger_kwargs = {**(self.trigger_kwargs or {}), **told}
        self.invoke_defer_method(context=context)
        return self._conclude_job(context, self._event)

    def _form_line(self, container: str, line: str) -> str:
        if self.log_formatter or container != self._engine.container:
            return super()._form_line(container, line)
        return line

    def _take_identity(self, told: dict[str, Any]) -> None:
        identity = {key: told[key] for key in ("name", "namespace", "uid")}
        self.pod = k8s.V1Pod(metadata=k8s.V1ObjectMeta(**identity))

    def _conclude_job(self, context: Context, event: dict[str, Any]) -> Result | None:
        self._progress = event.get("progress")
        self._refuse_if_killed()
        store_progress(context.get("task_state_store"), self._progress)
        if event["status"] == "timeout":
            self._give_up(InterruptedFailure(f"execution_timeout of {self.execution_timeout} was reached."))
        if event["status"] == "error":
            return self._follow_again(context, event)
        if event["status"] == "gone":
            raise InterruptedFailure(
                f"{self._engine.kind} {self._identity.name} is gone: somebody deleted it. The retry resumes from the "
                "newest checkpoint."
            )
        return self._conclude_end(context, event)

    def _conclude_end(self, context: Context, event: dict[str, Any]) -> Result:
        pod = event["pod"] and to_model(event["pod"])
        if pod:
            self._call_back("on_pod_completion", context, pod=pod)
            self._call_back("on_pod_teardown", context, pod=pod)
        self._tidy_job(event)
        if event["exit_code"] is not None and event["exit_code"] in self.skip_on_exit_code:
            raise AirflowSkipException(f"Exit code {event['exit_code']}: skipped, as skip_on_exit_code says.")
        if event["failure"]:
            raise vars(failures)[event["failure"]](event["message"], result=event["result"])
        if pod:
            self._call_back("on_pod_cleanup", context, pod=pod)
        result = event["result"] or self._result_out_of_sight(event)
        announce_result(self, context, result)
        self.do_xcom_push = self.push_result  # from here on it means what Airflow's runner means
        return result

    def _result_out_of_sight(self, event: dict[str, Any]) -> Result:
        """What the job itself tells, where its pods cannot."""
        summary = event["summary"]
        path = f"{self._output_dir.rstrip('/')}/{RESULT_FILE}" if self._output_dir else None
        self.log.warning(
            "%s %s succeeded (%s), and the trainer's result is out of sight here: %s. It stands in %s on the volume; "
            "the task's XCom has what the job tells.",
            self._engine.kind,
            summary["job_name"],
            summary["job_says"],
            event["pods_refusal"]
            or "none of the job's pods is to be seen, as where MultiKueue put them on another cluster",
            path or f"output_dir/{RESULT_FILE}",
        )
        return cast("Result", {"status": "succeeded", **summary, **({"result_path": path} if path else {})})

    def _follow_again(self, context: Context, event: dict[str, Any]) -> Result | None:
        """Where the API server was away: with new credentials."""
        if event.get("is_lasting"):
            self._give_up(LaunchFailure(event["message"]))
        quick = event.get("_redefer_count", 0) + 1 if event.get("watched_s", 0.0) < _QUICK_S else 0
        if quick > _MAX_QUICK_FAILURES:
            raise TransientFailure(f"The job cannot be watched: {event['message']} The retry finds it again.")
        self.log.warning("The watch on the job was lost; it is taken up again: %s", event["message"])
        self._refresh_cached_properties()
        self.trigger_kwargs = {**(self.trigger_kwargs or {}), "_redefer_count": quick}
        return self._follow_job(context)

    def _tidy_job(self, event: dict[str, Any]) -> None:
        """A job that is not finished would take its GPUs again; of a finished one `on_finish_action` decides."""
        action = self.on_finish_action.value
        unwanted = action == "delete_pod" or (action == "delete_succeeded_pod" and not event["failure"])
        if unwanted or not event["finished"]:
            self._delete_job()
            return
        try:
            self._job_api.patch(self._identity.name, {"metadata": {"labels": {self.POD_CHECKED_KEY: "True"}}})
        except Exception as error:  # noqa: BLE001  # a retry may look at it once more
            self.log.warning("The job cannot be labelled: %s", failures.clean_text(str(error)))

    def _give_up(self, failure: TrainingFailure) -> None:
        self._delete_job()
        raise failure

    @property
    def _job_api(self) -> JobApi:
        return JobApi(self, self._engine, self._identity.namespace)

    def _delete_job(self) -> None:
        self._job_api.delete(self._identity.name, self._identity.uid, claim=self._claim)


async def _take_first(watcher: SFTJobTrigger) -> dict[str, Any]:
    event = await anext(watcher.run())
    payload: dict[str, Any] = event.payload
    return payload
