"""K1-K7, K12: what each end of a pod means to Airflow, through real HTTP and real processes, in both modes."""

import re
import signal

import pytest

from tests.kube import faults
from tests.operators.cluster import MODES, tune


@MODES
def test_pod_that_succeeds_gives_its_result_as_xcom(desk, deferrable):
    outcome, task = tune(desk.stand_in(deferrable=deferrable))
    assert task.state == "success", outcome.log
    assert task.xcoms["return_value"]["model_path"] == "/data/output/final"
    assert len(desk.kube.created_pods) == 1
    assert desk.kube.pods() == []
    assert desk.counts == (1, 1)


@MODES
@pytest.mark.parametrize("code", [64, 65, 66, 68, 69, 77, 201, 202])
def test_permanent_exit_code_is_not_retried(desk, deferrable, code):
    outcome, task = tune(desk.stand_in(deferrable=deferrable, stand_in_exit=code, retries=3))
    assert task.state == "failed", outcome.log
    assert "The reason the trainer gave." in outcome.log
    assert desk.counts == (1, 1)


@MODES
@pytest.mark.parametrize("code", [1, 2, 134, 139, 200, 203, 204, 205, 206, 207, 208])
def test_retryable_exit_code_is_retried(desk, deferrable, code):
    outcome, task = tune(desk.stand_in(deferrable=deferrable, stand_in_exit=code, retries=1))
    assert (task.state, task.try_number) == ("failed", 2), outcome.log
    assert "The reason the trainer gave." in outcome.log
    assert desk.counts == (2, 2)


@MODES
def test_oom_killed_pod_names_the_limit_and_is_not_retried(desk, deferrable):
    desk.kube.inject(faults.OOMKilled(after_lines=4))
    outcome, task = tune(desk.stand_in(deferrable=deferrable, memory="1Gi", stand_in_steps=200, retries=3))
    assert task.state == "failed"
    assert "reached its memory limit of 1Gi and was killed (OOMKilled). It reached step" in outcome.log
    assert desk.counts == (1, 1)


@MODES
def test_evicted_pod_carries_the_kubelets_text(desk, deferrable):
    desk.kube.inject(faults.Evicted(after_lines=4))
    outcome, task = tune(desk.stand_in(deferrable=deferrable, stand_in_steps=200, retries=3))
    assert task.state == "failed"
    assert "Container base was using 1498072868Ki, request is 0" in outcome.log
    assert "Raise ephemeral_storage above what it used" in outcome.log
    assert desk.counts == (1, 1)


@MODES
def test_pod_evicted_for_memory_is_not_retried(desk, deferrable):
    text = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 12Mi."
    desk.kube.inject(faults.Evicted(after_lines=4, message=text))
    outcome, task = tune(desk.stand_in(deferrable=deferrable, stand_in_steps=200, retries=3))
    assert task.state == "failed"
    assert f"The pod was evicted: {text} It reached step" in outcome.log
    assert "Raise memory, the request too:" in outcome.log
    assert desk.counts == (1, 1)


@MODES
def test_pod_on_a_lost_node_is_retried(desk, deferrable):
    desk.kube.inject(faults.NodeLost(after_lines=40))
    outcome, task = tune(desk.stand_in(deferrable=deferrable, stand_in_steps=200, retries=1))
    assert (task.state, task.try_number) == ("success", 2), outcome.log
    assert re.search(r"The pod was preempted at step \d+ .*Kubernetes says: ", outcome.log)
    assert desk.counts == (2, 2)


@MODES
def test_preempted_pod_is_retried(desk, deferrable):
    desk.kube.inject(faults.Preempted(after_lines=40))
    run = desk.stand_in(deferrable=deferrable, stand_in_steps=200, stand_in_on_term="save", retries=1)
    outcome, task = tune(run)
    assert (task.state, task.try_number) == ("success", 2), outcome.log
    assert re.search(
        r"The pod was preempted at step \d+ and resumes from .*Kubernetes says: Preempt", outcome.log
    )
    assert desk.counts == (2, 2)


KUEUE = "Preempted to accommodate a workload of higher priority"


def stop_as_kueue(desk, *, seen):
    """Kueue writes a condition, deletes the pod and tells in an event.

    :param seen: whether the condition is there when the pod is looked at the last time
    """
    pod, core = desk.kube.pods()[0], desk.core()
    name, involved = (
        pod["metadata"]["name"],
        {key: pod["metadata"][key] for key in ("name", "namespace", "uid")},
    )
    if seen:
        condition = {
            "type": "TerminationTarget",
            "status": "True",
            "reason": "WorkloadEvicted",
            "message": KUEUE,
        }
        core.patch_namespaced_pod_status(name, "default", {"status": {"conditions": [condition]}})
    core.delete_namespaced_pod(name, "default")
    event = {"reason": "Stopped", "message": KUEUE, "involvedObject": {"kind": "Pod", **involved}}
    core.create_namespaced_event("default", {"metadata": {"name": f"{name}.stopped"}, **event})


@MODES
@pytest.mark.parametrize("seen", [True, False], ids=["condition", "event"])
def test_pod_that_kueue_takes_back_is_retried_and_tells_kueues_reason(desk, deferrable, seen):
    run = desk.stand_in(
        deferrable=deferrable,
        stand_in_steps=200,
        stand_in_on_term="ignore",
        termination_grace_period=2,
        retries=1,
    )
    run.wait_for_log("step 5/200")
    stop_as_kueue(desk, seen=seen)
    outcome, task = tune(run)
    assert (task.state, task.try_number) == ("success", 2), outcome.log
    assert re.search(rf"preempted at step \d+ .*says: (WorkloadEvicted|Stopped): {KUEUE}", outcome.log)
    assert len(desk.kube.starts) == 2


@MODES
def test_pod_deleted_by_somebody_is_retried(desk, deferrable):
    desk.kube.inject(faults.Vanished(after_lines=40))
    outcome, task = tune(desk.stand_in(deferrable=deferrable, stand_in_steps=200, retries=1))
    assert (task.state, task.try_number) == ("success", 2), outcome.log
    assert "is gone: somebody deleted it, or its node was lost. It reached step" in outcome.log
    assert desk.counts == (2, 2)


@MODES
def test_pod_preempted_before_it_started_is_retried(desk, deferrable):
    desk.kube.inject(faults.Preempted(before_start=True))
    outcome, task = tune(desk.stand_in(deferrable=deferrable, retries=1))
    assert (task.state, task.try_number) == ("success", 2), outcome.log
    assert "The pod was preempted and resumes from the newest checkpoint." in outcome.log
    assert desk.counts == (2, 1)


@MODES
def test_unschedulable_pod_is_waited_for_in_the_schedulers_words(desk, deferrable):
    texts = (
        "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
        "0/2 nodes are available: 2 too busy.",
    )
    desk.kube.inject(faults.Unschedulable(for_s=3, messages=texts))
    outcome, task = tune(
        desk.stand_in(deferrable=deferrable, schedule_timeout_seconds=60, startup_timeout_seconds=1)
    )
    assert task.state == "success", outcome.log
    for text in texts:
        assert outcome.log.count(f"waits: Unschedulable: {text}") == 1
    assert desk.counts == (1, 1)


@MODES
def test_pod_that_is_never_scheduled_is_given_up_and_deleted(desk, deferrable):
    desk.kube.inject(faults.Unschedulable())
    outcome, task = tune(desk.stand_in(deferrable=deferrable, schedule_timeout_seconds=1, retries=1))
    assert (task.state, task.try_number) == ("success", 2), outcome.log
    assert (
        "The pod waited 1 s to be scheduled and was given up. Last: Unschedulable: 0/1 nodes" in outcome.log
    )
    assert desk.kube.pods() == []
    assert desk.counts == (2, 1)


@MODES
def test_missing_secret_fails_fast_and_is_named(desk, deferrable):
    run = desk.stand_in(deferrable=deferrable, secrets={"HF_TOKEN": "absent/token"}, retries=3)
    outcome, task = tune(run)
    assert task.state == "failed", outcome.log
    assert 'secret "absent" not found' in outcome.log
    assert desk.kube.pods() == []
    assert desk.counts == (1, 0)


@MODES
def test_missing_volume_fails_fast_and_is_named(desk, deferrable, tmp_path):
    run = desk.stand_in(deferrable=deferrable, volumes={f"{tmp_path}/mnt/c": "configmap:absent"}, retries=3)
    outcome, task = tune(run)
    assert task.state == "failed", outcome.log
    assert 'configmap "absent" not found' in outcome.log
    assert desk.counts == (1, 0)


@MODES
@pytest.mark.parametrize("status", [401, 404])
def test_refused_image_fails_fast_with_the_registrys_text(desk, deferrable, status):
    desk.kube.inject(faults.ImagePullError(status=status))
    outcome, task = tune(desk.stand_in(deferrable=deferrable, retries=3))
    assert task.state == "failed", outcome.log
    assert "The pod cannot start. " in outcome.log
    assert "Correct image, or give image_pull_secrets." in outcome.log
    assert desk.counts == (1, 0)


@MODES
@pytest.mark.parametrize("status", [429, 503])
def test_busy_registry_is_waited_for(desk, deferrable, status):
    desk.kube.inject(faults.ImagePullError(status=status, for_s=2))
    outcome, task = tune(desk.stand_in(deferrable=deferrable))
    assert task.state == "success", outcome.log
    assert desk.counts == (1, 1)


@MODES
@pytest.mark.parametrize(
    "data", [b"", b"x" * 5000, '{"contract_version": 1, "é'.encode()[:-1], b"\x1b[31mred\x1b[0m \x07alarm"]
)
def test_termination_message_that_is_no_result_is_classed_by_the_code(desk, deferrable, data):
    desk.kube.inject(faults.TerminationMessage(data=data))
    outcome, task = tune(desk.stand_in(deferrable=deferrable, stand_in_exit=65, retries=3))
    assert task.state == "failed", outcome.log
    assert "Correct the data and run the task again." in outcome.log
    assert "\x1b[31m" not in outcome.log
    assert desk.counts == (1, 1)


@MODES
def test_success_without_a_result_fails(desk, deferrable):
    outcome, task = tune(desk.stand_in(deferrable=deferrable, stand_in_result="none"))
    assert task.state == "failed", outcome.log
    assert "exit code 0 but left no result" in outcome.log


@MODES
def test_unexplained_kill_is_an_interruption(desk, deferrable):
    desk.kube.inject(faults.Killed(after_lines=4, signal=int(signal.SIGKILL)))
    outcome, task = tune(desk.stand_in(deferrable=deferrable, stand_in_steps=200, retries=1))
    assert (task.state, task.try_number) == ("success", 2), outcome.log
    assert "ended by SIGKILL (exit code 137)" in outcome.log
    assert desk.counts == (2, 2)


@MODES
def test_image_without_the_trainer_fails_without_retry(desk, deferrable):
    outcome, task = tune(desk.stand_in(deferrable=deferrable, cmds=["/no/such/program"], retries=3))
    assert task.state == "failed", outcome.log
    assert len(desk.kube.created_pods) == 1
