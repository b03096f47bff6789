"""What is left of a job when its task has ended: `on_finish_action`, for all engines and all that a job owns."""

import pytest

from tests.jobs.controllers import Controllers
from tests.jobs.desk import ENGINES, wait_until
from tests.operators.cluster import CONFIG, MODES, tune

# A config that needs a ConfigMap, and nodes that need a Service where the engine brings none.
OWNING = {"num_nodes": 2, "config": {**CONFIG, "chat_template": "é" * 60_000}}


def left(desk, cluster):
    """Kinds of what is there, without pods."""
    services = [service.metadata.name for service in desk.core().list_namespaced_service("default").items]
    runtimes = cluster.objects("TrainingRuntime") if "TrainingRuntime" in cluster.kinds else []
    return {
        *(job["kind"] for job in cluster.jobs()),
        *("ConfigMap" for _ in desk.config_maps()),
        *("Service" for name in services if name.startswith("tune-")),
        *("TrainingRuntime" for _ in runtimes),
    }


WHOLE = {
    "job": {"Job", "Service", "ConfigMap"},
    "jobset": {"JobSet", "ConfigMap"},
    "pytorchjob": {"PyTorchJob", "ConfigMap"},
    "trainjob": {"TrainJob", "TrainingRuntime", "ConfigMap"},
}


@ENGINES
@pytest.mark.parametrize(
    ("action", "exit_code", "kept"),
    [
        ("delete_succeeded_pod", 0, False),
        ("delete_succeeded_pod", 65, True),
        ("delete_pod", 65, False),
        ("keep_pod", 0, True),
        ("delete_active_pod", 0, True),
    ],
)
def test_finished_job_is_kept_or_deleted_with_all_that_it_owns(desk, engine, action, exit_code, kept):
    with Controllers(desk.kube, engine) as cluster:
        run = desk.stand_in(
            deferrable=True, engine=engine, on_finish_action=action, stand_in_exit=exit_code, **OWNING
        )
        outcome, task = tune(run)
        assert task.state == ("failed" if exit_code else "success"), outcome.log
        assert left(desk, cluster) == (WHOLE[engine] if kept else set())


@MODES
def test_unfinished_job_is_deleted_whatever_is_to_be_kept(desk, deferrable):
    with Controllers(desk.kube, "trainjob") as cluster:
        told = {"on_finish_action": "keep_pod", "run_timeout_seconds": 1, "stand_in_on_term": "save"}
        run = desk.stand_in(deferrable=deferrable, engine="trainjob", stand_in_steps=3000, **told, **OWNING)
        outcome, task = tune(run)
        assert task.state == "failed", outcome.log
        wait_until(lambda: left(desk, cluster) == set())


@pytest.mark.parametrize(("keep_s", "jobs"), [(0, 1), (3600, 2)])
def test_trainjob_that_stayed_goes_with_a_later_run_of_its_task(desk, keep_s, jobs):
    with Controllers(desk.kube, "trainjob") as cluster:
        for _ in range(2):
            told = {"keep_finished_seconds": keep_s, "stand_in_exit": 65}
            assert tune(desk.stand_in(deferrable=True, engine="trainjob", **told))[1].state == "failed"
        assert len(cluster.jobs()) == len(cluster.objects("TrainingRuntime")) == jobs
