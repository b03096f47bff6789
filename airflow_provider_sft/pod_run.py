"""One training as one pod, across workers, triggerers and tries: found again, followed, concluded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Never, TypeVar

from airflow.providers.common.compat.sdk import AirflowSkipException
from kubernetes.client import models as k8s

from airflow_provider_sft import failures
from airflow_provider_sft.config_map import delete_config_map
from airflow_provider_sft.contract.outcome import Result
from airflow_provider_sft.contract.progress import Progress
from airflow_provider_sft.failures import (
    InterruptedFailure,
    LaunchFailure,
    TrainingFailure,
    TransientFailure,
    describe_position,
)
from airflow_provider_sft.metrics import task_tags
from airflow_provider_sft.pod_claim import PodClaim
from airflow_provider_sft.pod_kill import PodKill
from airflow_provider_sft.pod_outcome import (
    Pod,
    container_state,
    failure_of_pod,
    find_disruption,
    has_ended,
    is_terminal,
    read_result,
    to_plain,
)
from airflow_provider_sft.pod_start import StartWatch
from airflow_provider_sft.pod_watch import PodWatch
from airflow_provider_sft.progress_report import store_progress
from airflow_provider_sft.quota import QuotaFullError, QuotaWait
from airflow_provider_sft.result_report import announce_result
from airflow_provider_sft.triggers.kubernetes import SFTTrainerTrigger
from airflow_provider_sft.triggers.pause import PauseTrigger
from airflow_provider_sft.try_claim import is_held_by_another, new_claim

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from airflow.triggers.base import BaseTrigger

T = TypeVar("T")

# A triggerer that held out this long did its work; only quick failures in a row count.
_QUICK_S = 60.0
_MAX_QUICK_FAILURES = 10


class PodRun(PodKill):
    """What of KubernetesPodOperator has to do with the pod's life, made for runs of hours and days."""

    push_result: bool
    quota_pause_s = 30.0  # between two looks at a quota that was full
    _result: Result | None = None
    _why_gone: str = ""
    _quota_wait: QuotaWait | None = None
    _progress: Progress | None = None

    def long_config(self) -> str | None:
        """The config as text, where it is too long for an environment variable."""
        return None

    def may_have_config_map(self) -> bool:
        return False

    def tune(self, context: Context) -> Result | None:
        """Find or create the pod, then follow it: here, or in the triggerer."""
        self._claim = new_claim()
        self.pod_request_obj = self.build_pod_request_obj(context)
        self._call_back("on_pod_manifest_created", context, pod_request=self.pod_request_obj)
        with self._working():
            request = self.pod_request_obj
            self.pod = self._when_there_is_room(lambda: self.get_or_create_pod(request, context))
            context["ti"].xcom_push(key="pod_name", value=self.pod.metadata.name)
            context["ti"].xcom_push(key="pod_namespace", value=self.pod.metadata.namespace)
            self._call_back("on_pod_creation", context, pod=self.pod)
            self._refuse_if_killed()
            if self.deferrable and not has_ended(to_plain(self.pod), self.base_container_name):
                self.invoke_defer_method(context=context)
            return self._follow(context)

    def get_or_create_pod(self, pod_request_obj: k8s.V1Pod, context: Context) -> k8s.V1Pod:
        claim = PodClaim(self, context)
        return claim.find(pod_request_obj) or claim.create(pod_request_obj)

    def _when_there_is_room(self, create: Callable[[], T]) -> T:
        """What `create` gives, once the namespace's quota lets it. Deferrable, another call of `tune` goes on."""
        wait = self._quota_wait = self._quota_wait or QuotaWait(self.log, self.queue_limit_s)
        while True:
            self._refuse_if_killed()
            try:
                return create()
            except QuotaFullError as full:
                wait.take(full)
            if self.deferrable:
                trigger = PauseTrigger(
                    self.quota_pause_s, {"quota_since_s": wait.since_s, "quota_said": wait.said}
                )
                super().defer(trigger=trigger, method_name="look_for_room_again")
            self._rest(self.quota_pause_s)

    @property
    def queue_limit_s(self) -> float:
        """How long room is waited for."""
        allowed = self.execution_timeout
        return min(self.schedule_timeout_seconds, allowed.total_seconds() if allowed else math.inf)

    def defer(self, *, trigger: BaseTrigger, **options: Any) -> Never:
        """The parent knows how to make a trigger; ours takes its arguments."""
        _, arguments = trigger.serialize()
        super().defer(
            trigger=SFTTrainerTrigger(**arguments, pod_uid=self._identity.uid, claim=self._claim), **options
        )

    def trigger_reentry(self, context: Context, event: dict[str, Any]) -> Result | None:
        """Back from the triggerer: `SFTTrainerTrigger` tells what it saw."""
        name, namespace, uid = event["name"], event["namespace"], event["uid"]
        self.pod = k8s.V1Pod(metadata=k8s.V1ObjectMeta(name=name, namespace=namespace, uid=uid))
        self._claim = event.get("claim", "")
        self._progress, self._last_seen = event.get("progress"), event.get("pod")
        self._why_gone = event.get("why_gone", "")
        store_progress(context.get("task_state_store"), self._progress)
        if event["status"] == "failed":
            self._give_up(vars(failures)[event["failure"]](event["message"]))
        if event["status"] == "timeout":
            self._give_up(InterruptedFailure(f"execution_timeout of {self.execution_timeout} was reached."))
        if event["status"] == "error":
            self._defer_again(context, event)
        if event["status"] != "gone" and not event.get("log_complete", True):
            watch = self._watch(context)
            watch.window(self.base_container_name).read_until = event.get("log_read_until", "")
            self._read_log(watch, self.base_container_name)
        return self._conclude(context)

    def cleanup(
        self,
        pod: k8s.V1Pod,
        remote_pod: k8s.V1Pod,
        xcom_result: dict[str, Any] | None = None,
        context: Context | None = None,
    ) -> None:
        """Tell how the pod ended. :raises TrainingFailure: badly"""
        self._refuse_if_killed()
        seen, gone = self._last_look()
        failure = failure_of_pod(
            seen,
            container=self.base_container_name,
            gone=gone,
            why_gone=self._why_gone,
            progress=self._progress,
        )
        if failure and self.log_events_on_failure and not gone:
            self._read_pod_container_states(pod, reraise=False)
            self._read_pod_events(pod, reraise=False)
        if self.may_have_config_map():
            delete_config_map(self, self._identity)
        if not gone:
            self._tidy(seen, failed=failure is not None)
        self._skip_if_asked(seen)
        if failure:
            raise failure
        self._result = read_result(seen, self.base_container_name)

    def _follow(self, context: Context) -> Result | None:
        watch = self._watch(context)
        started = False
        while (pod := self._read()) is not None and not self._leaves_pod():
            watch.see(pod)
            self._last_seen = pod
            if watch.is_pending(pod):
                if failure := watch.judge(pod, self._read_events()):
                    self._give_up(failure)
            else:
                if not started:
                    started = True
                    self.await_init_containers_completion(pod=self.pod)
                    self._call_back("on_pod_starting", context, pod=self.pod)
                for container in self._logged_containers(pod):
                    self._read_log(watch, container, follow=self._killed)
                if watch.is_over(pod):
                    break
            self._rest(watch.pause_s(self.poll_interval))
        self._last_seen, self._progress = watch.last, watch.report.last
        watch.report.store()
        return self._conclude(context)

    def _conclude(self, context: Context) -> Result | None:
        self._call_back("on_pod_completion", context, pod=self.pod)
        self._call_back("on_pod_teardown", context, pod=self.pod)
        self.post_complete_action(pod=self.pod, remote_pod=self.pod, context=context, result=None)
        if self._result is None:
            raise RuntimeError("cleanup left neither a result nor a failure")
        announce_result(self, context, self._result)
        self.do_xcom_push = self.push_result  # from here on it means what Airflow's runner means
        return self._result

    def _watch(self, context: Context) -> PodWatch:
        start = StartWatch(
            self.base_container_name, self.schedule_timeout_seconds, self.startup_timeout_seconds
        )
        store = context.get("task_state_store")
        return PodWatch(start, self.log, store, self._form_line, task_tags(context))

    def _form_line(self, container: str, line: str) -> str:
        if self.log_formatter:
            return self.log_formatter(container, line)
        named = self.container_name_log_prefix_enabled or container != self.base_container_name
        return f"[{container}] {line}" if named else line

    def _logged_containers(self, pod: Pod) -> list[str]:
        if not self.get_logs:
            return []
        asked = self.container_logs
        if asked is True:
            return [container["name"] for container in pod["spec"]["containers"]]
        return [asked] if isinstance(asked, str) else list(asked)

    def _last_look(self) -> tuple[Pod, bool]:
        """The pod as last seen, and whether it is gone."""
        if self._last_seen and has_ended(self._last_seen, self.base_container_name):
            return self._last_seen, False
        current = self._read()
        if current is not None:
            return current, False
        self._why_gone = self._why_gone or find_disruption(self._read_events())
        return self._last_seen or to_plain(self.pod), True

    def _tidy(self, pod: Pod, *, failed: bool) -> None:
        """Mark or delete the pod as the parent would; but never leave one that still holds its GPUs."""
        if is_held_by_another(pod["metadata"], self._claim):
            return
        # A task that failed keeps its pod for reading, also where the container ended with 0 and left no result.
        phase = "Failed" if failed and is_terminal(pod) else pod["status"].get("phase")
        model = k8s.V1Pod(metadata=self._identity, status=k8s.V1PodStatus(phase=phase, container_statuses=[]))
        if failed or self.on_finish_action.value in ("keep_pod", "delete_active_pod"):
            self.patch_already_checked(model, reraise=False)
        if not failed and self.on_finish_action.value == "delete_succeeded_pod":
            model.status.phase = "Succeeded"  # the trainer has; a side-car may still run
        if not self.process_pod_deletion(model, reraise=False) and not is_terminal(pod):
            self._delete()

    def _give_up(self, failure: TrainingFailure) -> None:
        """:raises TrainingFailure: always; the pod is deleted first, or it would take GPUs later"""
        self._delete()
        raise failure

    def _defer_again(self, context: Context, event: dict[str, Any]) -> None:
        """Where the triggerer lost the API server: with new credentials, if the pod is still at work."""
        pod = self._read()
        if pod is None or has_ended(pod, self.base_container_name):
            return
        if event.get("is_lasting"):
            self._give_up(LaunchFailure(event["message"]))
        quick = event.get("_redefer_count", 0) + 1 if event.get("watched_s", 0.0) < _QUICK_S else 0
        if quick > _MAX_QUICK_FAILURES:
            raise TransientFailure(
                f"The triggerer cannot watch the pod: {event['message']} The retry finds it again."
            )
        self.log.warning("The triggerer lost the pod, which still runs: %s", event["message"])
        self.trigger_kwargs = {**(self.trigger_kwargs or {}), "_redefer_count": quick}
        self.invoke_defer_method(context=context)

    def _skip_if_asked(self, pod: Pod) -> None:
        exit_code = container_state(pod, self.base_container_name).get("terminated", {}).get("exitCode")
        if exit_code is not None and exit_code in self.skip_on_exit_code:
            raise AirflowSkipException(f"Exit code {exit_code}: skipped, as skip_on_exit_code says.")

    def _refuse_if_killed(self) -> None:
        if not self._killed:
            return
        result = read_result(self._last_seen, self.base_container_name) if self._last_seen else None
        position = describe_position(result, self._progress)
        sentences = [f"The task was told to end; the pod {self._fate}.", position, "The retry resumes."]
        raise InterruptedFailure(" ".join(filter(None, sentences)), result=result)
