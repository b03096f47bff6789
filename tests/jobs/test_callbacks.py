"""KubernetesPodOperator's callbacks, told of the first node's pods."""

import pytest

from tests.jobs.controllers import Controllers
from tests.jobs.desk import ENGINES
from tests.kube import faults
from tests.operators.cluster import MODES, tune
from tests.operators.recorder import RECORDER, REFUSER, recorded

ENDS = ("on_pod_completion", "on_pod_teardown", "on_pod_cleanup")


def first_nodes(desk):
    """Names of its pods, in order of creation."""
    names = [pod["metadata"]["name"] for pod in desk.kube.created_pods]
    return [name for name in names if "-0-" in name]


@MODES
@ENGINES
def test_callbacks_are_told_of_the_first_node_and_its_lines(desk, engine, deferrable):
    with Controllers(desk.kube, engine):
        told = {"callbacks": RECORDER, "stand_in_line": "loading", "num_nodes": 2}
        outcome, task = tune(desk.stand_in(deferrable=deferrable, engine=engine, **told))
    assert task.state == "success", outcome.log
    [name] = first_nodes(desk)
    here = [] if deferrable else ["on_pod_creation", "on_pod_starting", "line"]
    assert recorded(outcome.log) == [
        ("on_pod_manifest_created", "tune"),
        *[(call, name) for call in (*here, *ENDS)],
    ]


def test_callbacks_are_told_of_each_pod_of_the_first_node(desk):
    desk.kube.inject(faults.Killed(after_lines=60, signal=9))
    with Controllers(desk.kube, "jobset"):
        told = {"callbacks": RECORDER, "stand_in_line": "loading", "stand_in_steps": 100}
        outcome, task = tune(desk.stand_in(deferrable=False, engine="jobset", **told))
    assert task.state == "success", outcome.log
    first, second = first_nodes(desk)
    assert [name for call, name in recorded(outcome.log) if call == "on_pod_starting"] == [first, second]
    assert [name for call, name in recorded(outcome.log) if call == "line"] == [first, second]
    assert [name for call, name in recorded(outcome.log) if call in ENDS] == [second] * 3


@MODES
def test_callbacks_of_a_failed_job_end_with_teardown(desk, deferrable):
    with Controllers(desk.kube, "job"):
        run = desk.stand_in(deferrable=deferrable, engine="job", callbacks=RECORDER, stand_in_exit=65)
        outcome, task = tune(run)
    assert task.state == "failed", outcome.log
    assert [call for call, _ in recorded(outcome.log)][-2:] == ["on_pod_completion", "on_pod_teardown"]


@pytest.mark.parametrize("get_logs", [True, False])
def test_callback_that_raises_fails_the_try_and_the_next_one_follows_the_job(desk, get_logs):
    with Controllers(desk.kube, "jobset"):
        told = {"callbacks": REFUSER, "get_logs": get_logs, "stand_in_steps": 300, "retries": 1}
        outcome, task = tune(desk.stand_in(deferrable=False, engine="jobset", **told))
    assert (task.state, task.try_number) == ("failed", 2), outcome.log
    assert outcome.log.count("ValueError: This callback has a bug.") >= 2
    assert "of an earlier try still goes on; this try follows it" in outcome.log
    assert len(desk.kube.created_pods) == 1
