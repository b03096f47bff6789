"""What a job's own object tells of its end, in the words and times of each engine."""

import pytest

from airflow_provider_sft.engines.summary import summarize_job
from tests.jobs.states import is_so, job

START, END = "2026-01-01T00:01:00Z", "2026-01-01T02:00:00Z"
OWN_TIMES = {"startTime": START, "completionTime": END}


def at(time, *condition, status="True"):
    return {**is_so(*condition, status=status), "lastTransitionTime": time}


ENDED = {
    "Job": job("Job", is_so("Complete", "CompletionsReached"), failed=1, **OWN_TIMES),
    "PyTorchJob": job(
        "PyTorchJob",
        at(END, "Succeeded", "CompletionsReached"),
        replicaStatuses={"Master": {"failed": 1}, "Worker": {"succeeded": 1}},
        **OWN_TIMES,
    ),
    "JobSet": job(
        "JobSet",
        at(START, "Suspended", "ResumeJobs", status="False"),
        at(END, "Completed", "CompletionsReached"),
        restarts=1,
        terminalState="Completed",
    ),
    "TrainJob": job(
        "TrainJob",
        at(START, "Suspended", "Resumed", status="False"),
        at(END, "Complete", "CompletionsReached"),
        jobsStatus=[{"name": "node", "succeeded": 1}],
    ),
}


@pytest.mark.parametrize("kind", ENDED)
def test_job_tells_its_end_restarts_and_times(kind):
    summary = summarize_job(ENDED[kind])
    counted = {} if kind == "TrainJob" else {"restarts": 1}  # they are in the JobSet behind it
    assert summary == {
        "job_name": "tune",
        "job_engine": kind.lower(),
        "job_says": "CompletionsReached",
        "num_nodes": 2,
        "started_at": START,
        "completed_at": END,
        **counted,
    }


def test_job_that_says_no_start_began_when_it_was_made():
    made = job("JobSet", at(END, "Failed", "FailedJobs", "jobset failed"))
    made["metadata"]["creationTimestamp"] = START
    summary = summarize_job(made)
    assert (summary["started_at"], summary["job_says"]) == (START, "FailedJobs: jobset failed")


def test_trainjob_passes_on_what_its_trainer_told_it():
    progress = {"progressPercentage": 100, "metrics": [{"name": "loss", "value": "1.5"}]}
    made = job("TrainJob", at(END, "Complete", "JobsCompleted"), trainerStatus=progress)
    assert summarize_job(made)["trainer_status"] == progress
