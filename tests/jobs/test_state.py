"""Where a job is: what the cluster shows, and what it is called."""

from __future__ import annotations

import json
import re

import pytest

from airflow_provider_sft import failures
from airflow_provider_sft.engines.outcome import failed_exit_code, failure_of_job
from airflow_provider_sft.engines.state import Stage, classify
from tests.jobs.states import KINDS, is_so, job, pod, workload

RESULT = json.dumps({"contract_version": 1, "status": "succeeded", "exit_code": 0, "steps": 9})
NO_QUOTA = is_so(
    "QuotaReserved", "Pending", "couldn't assign flavors: insufficient unused quota", status="False"
)
RESERVED, ADMITTED = is_so("QuotaReserved", "QuotaReserved"), is_so("Admitted", "Admitted")
NOT_ADMITTED = is_so("Admitted", "NoReservation", "The workload has no reservation", status="False")
EVICTED = is_so("Evicted", "Preempted", "Preempted to accommodate a workload of higher priority")
EVICTED_NO_MORE = is_so("Evicted", "QuotaReserved", "Previously: Preempted", status="False")
REQUEUED = is_so("Requeued", "Preempted", "Preempted to accommodate a workload of higher priority")
LATER = is_so("Requeued", "PodsReadyTimeout", "Exceeded the PodsReady timeout", status="False")

# Kueue's cycle, the same for every engine: what the job's suspension, its Workload and its pods make together.
CYCLE = [
    ("no-workload", True, None, [], "queued", "suspended, and Kueue has no Workload of it yet"),
    ("no-queue", True, workload(is_so("QuotaReserved", "Inadmissible", "LocalQueue lq doesn't exist", status="False")), [], "queued", "Inadmissible: LocalQueue lq doesn't exist"),
    ("no-quota", True, workload(NO_QUOTA), [], "queued", "Pending: couldn't assign flavors: insufficient"),
    ("checks", True, workload(RESERVED, admissionChecks=[{"name": "capacity", "state": "Pending", "message": "asking for nodes"}]), [], "queued", r"admission checks \(capacity: asking for nodes\)"),
    ("admitted-suspended", True, workload(RESERVED, ADMITTED), [], "admitted", "about to be resumed"),
    ("admitted-no-pod", False, workload(RESERVED, ADMITTED), [], "admitted", "no pod yet"),
    ("one-unschedulable", False, workload(RESERVED, ADMITTED), [("run", 0), ("stuck", 1)], "starting", "1 of 2 nodes run; node 1 waits: Unschedulable: 0/4 nodes"),
    ("pulling", False, workload(RESERVED, ADMITTED), [("pull", 0), ("pull", 1)], "starting", "0 of 2 nodes run; node 0 waits: ContainerCreating"),
    ("one-missing", False, workload(RESERVED, ADMITTED), [("run", 0)], "starting", "node 1 has no pod yet"),
    ("running", False, workload(RESERVED, ADMITTED, is_so("PodsReady", "Started")), [("run", 0), ("run", 1)], "running", "2 of 2 nodes run"),
    ("evicted", False, workload(RESERVED, ADMITTED, EVICTED), [("run", 0), ("run", 1)], "requeued", "Preempted: .*; the nodes save and end"),
    ("evicted-leaving", True, workload(RESERVED, ADMITTED, EVICTED), [("leave", 0), ("leave", 1)], "requeued", "Preempted to accommodate"),
    ("requeued", True, workload(NO_QUOTA, NOT_ADMITTED, EVICTED, REQUEUED), [], "requeued", "Preempted: .*insufficient unused quota"),
    ("backoff", True, workload(NO_QUOTA, LATER, requeueState={"count": 2, "requeueAt": "2026-01-01T02:00:00Z"}), [], "requeued", "PodsReadyTimeout: .*again at 2026-01-01T02"),
    ("admitted-again", True, workload(RESERVED, ADMITTED, EVICTED_NO_MORE, REQUEUED), [], "admitted", "about to be resumed"),
    ("running-again", False, workload(RESERVED, ADMITTED, EVICTED_NO_MORE, REQUEUED), [("run", 0), ("run", 1)], "running", "2 of 2"),
    ("stopped", True, workload(NO_QUOTA, is_so("Evicted", "Deactivated", "The workload is deactivated"), active=False), [], "failed", "stopped the job for good: Deactivated"),
    ("max-exec-time", True, workload(NO_QUOTA, is_so("Evicted", "DeactivatedDueToMaximumExecutionTimeExceeded", "exceeding the maximum execution time"), active=False), [], "failed", "MaximumExecutionTimeExceeded"),
    ("no-kueue-no-pod", False, None, [], "starting", "has made no pod yet"),
    ("no-kueue-running", False, None, [("run", 0), ("run", 1)], "running", "2 of 2"),
    ("multikueue-running-elsewhere", False, workload(RESERVED, ADMITTED, clusterName="west"), [], "admitted", "no pod yet"),
]  # fmt: skip
PODS = {
    "run": {"running": True},
    "pull": {"waiting": "ContainerCreating"},
    "stuck": {"unschedulable": "0/4 nodes are available"},
    "leave": {"leaving": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("suspend", "load", "pods", "stage", "reason"), [row[1:] for row in CYCLE], ids=[row[0] for row in CYCLE]
)
def test_state_in_kueues_cycle(kind, suspend, load, pods, stage, reason):
    made = [pod(kind, rank, **PODS[told]) for told, rank in pods]
    state = classify(job(kind, suspend=suspend), load, made)
    assert state.stage == stage
    assert re.search(reason, state.reason), state.reason


ENGINES_OWN = [
    ("job-complete", job("Job", is_so("Complete", "CompletionsReached", "Reached expected number of succeeded pods")), [], "succeeded", "CompletionsReached"),
    ("job-failed-code", job("Job", is_so("FailureTarget", "PodFailurePolicy"), is_so("Failed", "PodFailurePolicy", "Container base for pod ns/tune-0 failed with exit code 65 matching FailJob rule at index 1")), [], "failed", "exit code 65"),
    ("job-failing-still", job("Job", is_so("FailureTarget", "BackoffLimitExceeded"), ready=0), [pod("Job", code=203)], "restarting", "node 0 ended with exit code 203"),
    ("job-backoff", job("Job", is_so("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")), [], "failed", "BackoffLimitExceeded"),
    ("job-deadline", job("Job", is_so("Failed", "DeadlineExceeded", "Job was active longer than specified deadline")), [], "failed", "DeadlineExceeded"),
    ("job-false-is-not-failed", job("Job", is_so("Failed", status="False"), nodes=1), [pod("Job")], "running", "The node runs"),
    ("job-restarted", job("Job", nodes=1, failed=1), [pod("Job", code=204), pod("Job", attempt=1, waiting="ContainerCreating")], "restarting", "0 of 1 nodes run"),
    ("job-restarted-and-runs", job("Job", nodes=1, failed=1), [pod("Job", code=204), pod("Job", attempt=1)], "running", "The node runs"),
    ("job-being-deleted", {**job("Job"), "metadata": {"name": "tune", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"}}, [pod("Job")], "gone", "is being deleted"),
    ("jobset-complete", job("JobSet", is_so("Completed", "AllJobsCompleted", "jobset completed successfully")), [], "succeeded", "AllJobsCompleted"),
    ("jobset-failed-for-good", job("JobSet", is_so("Failed", "FailJobSetFailurePolicyAction", "jobset failed due to FailJobSet failure policy action")), [], "failed", "FailJobSetFailurePolicyAction"),
    ("jobset-max-restarts", job("JobSet", is_so("Failed", "ReachedMaxRestarts", "jobset failed due to reaching max number of restarts"), restarts=3), [], "failed", "ReachedMaxRestarts"),
    ("jobset-restarting", job("JobSet", restarts=1), [pod("JobSet", 0, waiting="ContainerCreating"), pod("JobSet", 1)], "restarting", "1 of 2 nodes run"),
    ("jobset-restarting-no-pods", job("JobSet", restarts=2), [], "restarting", "2 restarts; no node runs yet"),
    ("jobset-startup", job("JobSet", is_so("StartupPolicyInProgress", "InOrderStartupPolicyInProgress")), [], "starting", "no pod yet"),
    ("jobset-lost-node", job("JobSet"), [pod("JobSet", 0, code=204), pod("JobSet", 1, code=137, disruption="DeletionByTaintManager")], "restarting", "ended with exit code 204"),
    ("trainjob-complete", job("TrainJob", is_so("Complete", "AllJobsCompleted")), [], "succeeded", "AllJobsCompleted"),
    ("trainjob-failed", job("TrainJob", is_so("Failed", "ReachedMaxRestarts", "jobset failed due to reaching max number of restarts")), [], "failed", "ReachedMaxRestarts"),
    ("trainjob-no-runtime", job("TrainJob", is_so("Failed", "TrainingRuntimeNotSupported", "unsupported runtime")), [], "failed", "TrainingRuntimeNotSupported"),
    ("trainjob-resumed", job("TrainJob", is_so("Suspended", "Resumed", status="False")), [pod("TrainJob", 0), pod("TrainJob", 1)], "running", "2 of 2"),
    ("pytorchjob-created", job("PyTorchJob", is_so("Created", "PyTorchJobCreated")), [], "starting", "no pod yet"),
    ("pytorchjob-succeeded", job("PyTorchJob", is_so("Running", status="False"), is_so("Succeeded", "PyTorchJobSucceeded", "PyTorchJob tune is successfully completed.")), [], "succeeded", "successfully completed"),
    ("pytorchjob-failed", job("PyTorchJob", is_so("Failed", "PyTorchJobFailed", "PyTorchJob tune is failed because 1 Master replica(s) failed.")), [], "failed", "1 Master replica"),
    ("pytorchjob-restarting", job("PyTorchJob", is_so("Restarting", "PyTorchJobRestarting", "1 Worker replica(s) failed")), [pod("PyTorchJob", 0)], "restarting", "1 Worker replica.*node 1 has no pod yet"),
    ("pytorchjob-master-done-worker-runs", job("PyTorchJob"), [pod("PyTorchJob", 0, code=0, message=RESULT), pod("PyTorchJob", 1)], "running", "node 0 ended with exit code 0"),
    *((f"{kind.lower()}-stops-at-{code}", job(kind), [pod(kind, 0, code=code), pod(kind, 1)], "failed", f"node 0: .*{words}") for kind in KINDS for code, words in ((201, "room"), (202, "batch_size"))),
    *((f"{kind.lower()}-oom-killed", job(kind), [pod(kind, 1, code=137, reason="OOMKilled"), pod(kind, 0)], "failed", "node 1: .*memory limit of 9Gi") for kind in KINDS),
    *((f"{kind.lower()}-disk-full", job(kind), [pod(kind, 0, evicted="The node was low on resource: ephemeral-storage."), pod(kind, 1)], "failed", "ephemeral-storage") for kind in KINDS),
    *((f"{kind.lower()}-both-done", job(kind), [pod(kind, 0, code=0, message=RESULT), pod(kind, 1, code=0, message=RESULT)], "running", "all nodes have ended well") for kind in KINDS),
    *((f"{kind.lower()}-not-there", None, [], "gone", "does not exist") for kind in KINDS),
]  # fmt: skip


@pytest.mark.parametrize(
    ("made", "pods", "stage", "reason"),
    [row[1:] for row in ENGINES_OWN],
    ids=[row[0] for row in ENGINES_OWN],
)
def test_state_in_the_engines_own_words(made, pods, stage, reason):
    state = classify(made, None, pods)
    assert state.stage == stage, state.reason
    assert re.search(reason, state.reason), state.reason


OUT_OF_SIGHT = [
    ("Job", {"ready": 2}, "running"),
    ("Job", {"ready": 1}, "starting"),
    ("Job", {"ready": 0, "failed": 1}, "restarting"),
    ("JobSet", {"replicatedJobsStatus": [{"name": "node", "ready": 1}]}, "running"),
    ("JobSet", {"replicatedJobsStatus": [{"name": "node", "active": 1, "ready": 0}]}, "starting"),
    ("TrainJob", {"jobsStatus": [{"name": "node", "ready": 1}]}, "running"),
    ("TrainJob", {"jobsStatus": [{"name": "node", "active": 1}]}, "starting"),
    ("PyTorchJob", {"conditions": [is_so("Running", "PyTorchJobRunning")]}, "running"),
    ("PyTorchJob", {"conditions": [is_so("Restarting", "PyTorchJobRestarting")]}, "restarting"),
]


@pytest.mark.parametrize(("kind", "status", "stage"), OUT_OF_SIGHT)
def test_state_without_the_right_to_see_pods_is_what_the_job_says(kind, status, stage):
    made = job(kind)
    made["status"] |= status
    assert classify(made, None, None).stage == stage


def test_all_stages_are_in_the_tables():
    shown = {row[4] for row in CYCLE} | {row[3] for row in ENGINES_OWN}
    assert shown == {str(stage) for stage in Stage}
    assert len(CYCLE) + len(ENGINES_OWN) + len(OUT_OF_SIGHT) >= 40


FAILED = is_so("Failed", "ReachedMaxRestarts", "jobset failed due to reaching max number of restarts")


@pytest.mark.parametrize(
    ("codes", "failure", "node"),
    [
        ([65, 204], failures.DataFailure, 0),
        ([204, 65], failures.DataFailure, 1),
        ([203, 204], failures.InternalFailure, 0),
        ([206, 205], failures.HangFailure, 1),
        ([204, 204], failures.LostRankFailure, 0),
        ([0, 204], failures.LostRankFailure, 1),
    ],
)
def test_failure_is_the_deciding_nodes(codes, failure, node):
    message = [RESULT if code == 0 else "" for code in codes]
    pods = [
        pod("JobSet", rank, code=code, message=message[rank], finished=f"2026-01-01T00:05:0{rank}Z")
        for rank, code in enumerate(codes)
    ]
    made = job("JobSet", FAILED)
    found = failure_of_job(classify(made, None, pods), made, None, pods)
    assert type(found) is failure
    assert str(found).startswith(f"Node {node}: ")
    assert "The JobSet says: ReachedMaxRestarts: jobset failed" in str(found)
    assert failed_exit_code(made, pods) == codes[node]


def test_failure_of_an_earlier_attempt_does_not_decide():
    pods = [pod("Job", code=203), pod("Job", attempt=1, code=200)]
    made = job("Job", is_so("Failed", "BackoffLimitExceeded"), nodes=1)
    found = failure_of_job(classify(made, None, pods), made, None, pods)
    assert type(found) is failures.TransientFailure


@pytest.mark.parametrize(
    ("condition", "failure", "words"),
    [
        (
            is_so("Failed", "PodFailurePolicy", "Container base failed with exit code 66 matching"),
            failures.NotFoundFailure,
            "path is mounted",
        ),
        (is_so("Failed", "DeadlineExceeded", "too long"), failures.InterruptedFailure, "The retry resumes"),
        (is_so("Failed", "BackoffLimitExceeded", "x"), failures.TransientFailure, "Its pods are gone"),
    ],
)
def test_failure_without_pods_is_what_the_job_says(condition, failure, words):
    made = job("Job", condition)
    found = failure_of_job(classify(made, None, []), made, None, [])
    assert type(found) is failure
    assert words in str(found)


def test_job_that_kueue_stopped_is_not_retried():
    load = workload(is_so("Evicted", "Deactivated", "The workload is deactivated"), active=False)
    made = job("JobSet", suspend=True)
    found = failure_of_job(classify(made, load, []), made, load, [])
    assert isinstance(found, failures.PermanentFailure)
    assert "Kueue stopped the job for good: Deactivated" in str(found)


def test_success_needs_the_first_nodes_result():
    made = job("JobSet", is_so("Completed", "AllJobsCompleted"))
    state = classify(made, None, [])
    assert failure_of_job(state, made, None, [pod("JobSet", code=0, message=RESULT)]) is None
    found = failure_of_job(state, made, None, [pod("JobSet", code=0)])
    assert "left no result" in str(found)
