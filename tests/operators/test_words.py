"""What a task's log says of a pod or job is one thought, in one line, and of this run only."""

from __future__ import annotations

import pytest

from airflow_provider_sft.engines.state import classify
from airflow_provider_sft.pod_outcome import failure_of_pod
from tests.kube import faults
from tests.operators.cluster import tune

SUSPENDED = {
    "kind": "Job",
    "metadata": {"name": "tune-x", "uid": "u", "labels": {}},
    "spec": {"suspend": True, "completions": 1},
    "status": {},
}


def pod(status, **terminated):
    ended = {"name": "base", "state": {"terminated": {"exitCode": 137, **terminated}}}
    return {
        "metadata": {"name": "tune-x", "uid": "u"},
        "spec": {"containers": [{"name": "base"}]},
        "status": {"phase": "Failed", "containerStatuses": [ended], **status},
    }


@pytest.mark.parametrize(
    "seen",
    [
        pod({}, reason="OOMKilled"),
        pod({"reason": "Evicted", "message": "The node was low on resource: memory."}),
        pod({"reason": "Evicted", "message": "ephemeral local storage usage exceeds the limit."}),
        pod({}, reason="Error"),
    ],
    ids=["oom", "evicted-memory", "evicted-storage", "killed"],
)
@pytest.mark.parametrize("gone", [False, True])
def test_failure_of_a_pod_that_wrote_no_step_has_no_gap_in_its_sentence(seen, gone):
    if gone:
        seen = {**seen, "status": {"phase": "Running"}}
    assert "  " not in str(failure_of_pod(seen, container="base", gone=gone))


def test_suspended_job_without_a_queue_says_nothing_of_kueue():
    assert classify(SUSPENDED, None, []).reason == "the job is suspended"
    queued = {
        **SUSPENDED,
        "metadata": {**SUSPENDED["metadata"], "labels": {"kueue.x-k8s.io/queue-name": "lq"}},
    }
    assert "Kueue has no Workload of it yet" in classify(queued, None, []).reason


def test_two_configurations_of_the_cluster_fail_the_task_with_the_one_to_drop(desk):
    # config_file goes the way of KUBECONFIG; the connection has kube_config_path.
    run = desk.stand_in(deferrable=True, stand_in_steps=900, config_file=str(desk.kubeconfig), retries=1)
    outcome, task = tune(run)
    assert (task.state, task.try_number) == ("failed", 1), outcome.log
    assert "The triggerer cannot use the Kubernetes connection" in outcome.log
    assert "must not name another configuration (kube_config_path)" in outcome.log


def test_task_that_ends_before_its_pod_has_started_does_not_say_that_it_saves(desk):
    desk.kube.inject(faults.Unschedulable(for_s=30))
    run = desk.stand_in(deferrable=False, stand_in_steps=3)
    run.wait_for_log("waits: ")
    run.terminate()
    outcome, task = tune(run)
    assert task.state == "failed", outcome.log
    assert "the pod had not started, and is deleted" in outcome.log
    assert "to save" not in outcome.log
