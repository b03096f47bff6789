"""A job's lives through Airflow: queued, preempted, restarted, ended. Real HTTP and processes; one Airflow try each."""

import re

import pytest

from tests.jobs.controllers import Controllers, Kueue
from tests.jobs.desk import ENGINES
from tests.kube import faults
from tests.operators.cluster import CONFIG, MODES, tune

NEVER = 1e9
TWO_QUEUED = {"num_nodes": 2, "queue_name": "lq"}


@MODES
@ENGINES
def test_job_admitted_after_a_wait_gives_its_result(desk, engine, deferrable):
    with Controllers(desk.kube, engine, kueue=Kueue(admit_after_s=NEVER)) as cluster:
        served = {"artifacts_url": "https://files.example.com/{path}"}
        run = desk.stand_in(deferrable=deferrable, engine=engine, **TWO_QUEUED, **served, stand_in_steps=100)
        run.wait_for_log("is queued: Pending: couldn't assign flavors: insufficient unused quota")
        cluster.kueue.admit_after_s = 0
        outcome, task = tune(run)
        assert task.state == "success", outcome.log
        assert task.xcoms["return_value"]["model_path"] == "/data/output/final"
        assert task.xcoms["job_engine"] == engine
        assert task.xcoms["sft_links"]["Model"] == "https://files.example.com/data/output/final"
        assert "is running: 2 of 2 nodes run" in outcome.log
        assert [outcome.log.count(f"step {step}/100 ") for step in range(1, 101)] == [1] * 100
        assert len(desk.kube.created_pods) == 2
        assert cluster.jobs() == []


@ENGINES
@MODES
def test_job_preempted_twice_finishes_in_the_same_try(desk, engine, deferrable):
    with Controllers(desk.kube, engine, kueue=Kueue(preempt=2, preempt_after_s=1.5)):
        run = desk.stand_in(
            deferrable=deferrable,
            engine=engine,
            queue_name="lq",
            stand_in_steps=200,
            stand_in_on_term="save",
            stand_in_line="a new attempt",
        )
        outcome, task = tune(run)
    assert (task.state, task.try_number) == ("success", 1), outcome.log
    assert outcome.log.count("is requeued: Preempted: Preempted to accommodate") >= 2
    # Every attempt's log, to its last line.
    assert (outcome.log.count("a new attempt"), outcome.log.count("saving")) == (3, 2)
    assert len(desk.kube.created_pods) == 3


@MODES
@pytest.mark.parametrize(
    ("engine", "code"), [("job", 65), ("jobset", 68), ("trainjob", 64), ("pytorchjob", 66)]
)
def test_job_that_failed_for_good_is_not_retried(desk, engine, code, deferrable):
    with Controllers(desk.kube, engine) as cluster:
        run = desk.stand_in(deferrable=deferrable, engine=engine, stand_in_exit=code, retries=3)
        outcome, task = tune(run)
        assert (task.state, task.try_number) == ("failed", 1), outcome.log
        assert "The reason the trainer gave." in outcome.log
        assert len(desk.kube.starts) == 1
        assert len(cluster.jobs()) == 1  # it stays for reading


@MODES
@pytest.mark.parametrize("code", [201, 202])
def test_pytorchjob_that_would_restart_on_a_full_disk_or_memory_is_stopped(desk, code, deferrable):
    with Controllers(desk.kube, "pytorchjob") as cluster:
        run = desk.stand_in(deferrable=deferrable, engine="pytorchjob", stand_in_exit=code, retries=3)
        outcome, task = tune(run)
        assert (task.state, task.try_number) == ("failed", 1), outcome.log
        assert "The reason the trainer gave." in outcome.log
        assert cluster.jobs() == []
        assert len(desk.kube.starts) < 4  # without us, it restarts three times


@ENGINES
def test_lost_node_restarts_the_job_without_an_airflow_retry(desk, engine):
    desk.kube.inject(faults.Killed(after_lines=60, signal=9))
    with Controllers(desk.kube, engine):
        run = desk.stand_in(deferrable=True, engine=engine, stand_in_steps=100, stand_in_line="a new attempt")
        outcome, task = tune(run)
    assert (task.state, task.try_number) == ("success", 1), outcome.log
    assert outcome.log.count("a new attempt") == len(desk.kube.starts) == 2
    assert "is restarting: " in outcome.log


@MODES
def test_node_that_is_deleted_as_soon_as_it_failed_leaves_its_whole_log(desk, deferrable):
    with Controllers(desk.kube, "jobset", failed_for_s=0):
        lines = {"stand_in_line": "the first line", "stand_in_last_line": "the last line"}
        run = desk.stand_in(
            deferrable=deferrable,
            engine="jobset",
            **lines,
            stand_in_steps=150,
            stand_in_exit=203,
            max_restarts=2,
        )
        outcome, task = tune(run)
    assert task.state == "failed", outcome.log
    assert [outcome.log.count(line) for line in lines.values()] == [len(desk.kube.starts)] * 2 == [3, 3]


@ENGINES
def test_job_restarts_as_often_as_it_may_and_then_airflow_retries(desk, engine):
    with Controllers(desk.kube, engine):
        run = desk.stand_in(deferrable=True, engine=engine, max_restarts=1, stand_in_exit=203, retries=1)
        outcome, task = tune(run)
    assert (task.state, task.try_number) == ("failed", 2), outcome.log
    assert len(desk.kube.starts) == 4
    assert "says: BackoffLimitExceeded" in outcome.log


@MODES
def test_quota_that_never_comes_fails_with_kueues_words(desk, deferrable):
    with Controllers(desk.kube, "jobset", kueue=Kueue(admit_after_s=NEVER)) as cluster:
        run = desk.stand_in(deferrable=deferrable, engine="jobset", **TWO_QUEUED, queue_timeout_seconds=2)
        outcome, task = tune(run)
        assert task.state == "failed", outcome.log
        assert "The job waited 2 s in the queue 'lq' and was given up. Last: Pending: couldn't" in outcome.log
        assert cluster.jobs() == []
    assert desk.kube.created_pods == []


@MODES
def test_queue_without_an_integration_is_told_after_a_while(desk, deferrable):
    with Controllers(desk.kube, "pytorchjob", kueue=Kueue(notices=("Job",))) as cluster:
        run = desk.stand_in(
            deferrable=deferrable, engine="pytorchjob", **TWO_QUEUED, workload_timeout_seconds=1, retries=3
        )
        outcome, task = tune(run)
        assert (task.state, task.try_number) == ("failed", 1), outcome.log
        assert "Kueue 0.19 ships with its PyTorchJob integration off" in outcome.log
        assert cluster.jobs() == []


def test_queue_on_a_cluster_without_kueue_is_told_after_a_while(desk):
    with Controllers(desk.kube):
        run = desk.stand_in(deferrable=False, engine="job", queue_name="lq", workload_timeout_seconds=1)
        outcome, task = tune(run)
    assert task.state == "failed", outcome.log
    assert "Install Kueue with the integration of batch/v1 Job, or leave queue_name out." in outcome.log


@MODES
def test_missing_engine_is_one_sentence(desk, deferrable):
    with Controllers(desk.kube, "jobset"):
        run = desk.stand_in(deferrable=deferrable, engine="trainjob", num_nodes=2, retries=3)
        outcome, task = tune(run)
    assert (task.state, task.try_number) == ("failed", 1), outcome.log
    assert "serves no TrainJob (trainer.kubeflow.org/v1alpha1). Install Kubeflow Trainer" in outcome.log
    assert "or set engine to 'job' or 'jobset'." in outcome.log


def test_auto_takes_the_best_engine_that_the_cluster_serves(desk):
    with Controllers(desk.kube, "pytorchjob", "jobset"):
        outcome, task = tune(desk.stand_in(deferrable=True, num_nodes=2))
    assert (task.state, task.xcoms["job_engine"]) == ("success", "jobset"), outcome.log


@MODES
def test_workload_that_may_not_be_seen_costs_words_alone(desk, deferrable):
    desk.kube.inject(faults.Denied(resource="workloads.kueue.x-k8s.io"))
    with Controllers(desk.kube, "jobset", kueue=Kueue(preempt=1)):
        run = desk.stand_in(
            deferrable=deferrable,
            engine="jobset",
            queue_name="lq",
            stand_in_steps=100,
            workload_timeout_seconds=0.1,
        )
        outcome, task = tune(run)
    assert (task.state, task.try_number) == ("success", 1), outcome.log
    assert outcome.log.count("Airflow may not see Kueue's workloads, and goes on without: 403") == 1


@MODES
@ENGINES
def test_job_whose_pods_may_not_be_seen_tells_of_its_end_itself(desk, engine, deferrable):
    desk.kube.inject(faults.Denied(resource="pods"))
    served = {"artifacts_url": "https://files.example.com/{path}"}
    with Controllers(desk.kube, engine):
        outcome, task = tune(desk.stand_in(deferrable=deferrable, engine=engine, **served))
    assert task.state == "success", outcome.log
    assert outcome.log.count("Airflow may not see pods, and goes on without: 403") == 1
    assert re.search(
        r"succeeded \(Done: it is done\), and .* out of sight here: 403: pods is forb", outcome.log
    )
    told = task.xcoms["return_value"]
    assert (told["status"], told["job_engine"], told["num_nodes"]) == ("succeeded", engine, 1)
    assert told["result_path"] == "/data/output/run/result.json"
    assert told["started_at"] <= told["completed_at"]
    assert task.xcoms["sft_links"]["Report"] == "https://files.example.com/data/output/run/report.html"


@MODES
def test_job_whose_pods_are_on_another_cluster_tells_of_its_end_itself(desk, deferrable):
    with Controllers(desk.kube, "jobset", kueue=Kueue(), elsewhere=True):
        config = {
            "output_dir": "/data/output/{{ run_id }}",
            **{k: CONFIG[k] for k in CONFIG if k != "output_dir"},
        }
        run = desk.stand_in(deferrable=deferrable, engine="jobset", **TWO_QUEUED, config=config)
        outcome, task = tune(run)
    assert task.state == "success", outcome.log
    assert (
        "none of the job's pods is to be seen, as where MultiKueue put them on another cluster" in outcome.log
    )
    assert f"It stands in /data/output/{outcome.run_id}/result.json on the volume" in outcome.log
    assert task.xcoms["return_value"]["result_path"] == f"/data/output/{outcome.run_id}/result.json"
    assert desk.kube.created_pods == []


def test_watch_that_is_not_allowed_is_a_list_now_and_then(desk):
    desk.kube.inject(faults.Denied(verb="watch"))
    with Controllers(desk.kube, "jobset"):
        outcome, task = tune(desk.stand_in(deferrable=True, engine="jobset", stand_in_steps=50))
    assert task.state == "success", outcome.log
    assert outcome.log.count("Airflow may list but not watch pods") == 1


def test_job_that_may_not_be_watched_is_refused(desk):
    desk.kube.inject(faults.Denied(verb="watch|list|get", resource="jobsets.jobset.x-k8s.io"))
    with Controllers(desk.kube, "jobset"):
        outcome, task = tune(desk.stand_in(deferrable=False, engine="jobset", retries=3))
    assert (task.state, task.try_number) == ("failed", 1), outcome.log
    assert "jobsets.jobset.x-k8s.io is forbidden" in outcome.log


@MODES
def test_run_time_counts_only_while_the_job_runs(desk, deferrable):
    with Controllers(desk.kube, "jobset", kueue=Kueue(admit_after_s=4)) as cluster:
        run = desk.stand_in(
            deferrable=deferrable,
            engine="jobset",
            queue_name="lq",
            run_timeout_seconds=3,
            stand_in_steps=1000,
            stand_in_on_term="save",
        )
        outcome, task = tune(run)
        assert task.state == "failed", outcome.log
        assert "The job ran for 3 s, which run_timeout_seconds allows." in outcome.log
        assert "step 60/1000" in outcome.log
        assert cluster.jobs() == []


@MODES
def test_missing_secret_fails_fast_and_is_named(desk, deferrable):
    with Controllers(desk.kube, "jobset") as cluster:
        run = desk.stand_in(
            deferrable=deferrable, engine="jobset", secrets={"HF_TOKEN": "absent/token"}, retries=3
        )
        outcome, task = tune(run)
        assert (task.state, task.try_number) == ("failed", 1), outcome.log
        assert 'secret "absent" not found' in outcome.log
        assert cluster.jobs() == []


def test_nodes_that_never_start_are_given_up(desk):
    desk.kube.inject(faults.ImagePullError(status=503))
    with Controllers(desk.kube, "jobset"):
        run = desk.stand_in(deferrable=True, engine="jobset", startup_timeout_seconds=2)
        outcome, task = tune(run)
    assert task.state == "failed", outcome.log
    assert "The job took 2 s to start and was given up. Last: 0 of 1 nodes run; node 0 waits:" in outcome.log


@MODES
def test_long_config_reaches_all_nodes_and_goes_with_the_job(desk, deferrable, tmp_path):
    record = tmp_path / "record.jsonl"
    config = {**CONFIG, "chat_template": "é" * 60_000}
    with Controllers(desk.kube, "trainjob") as cluster:
        run = desk.stand_in(
            deferrable=deferrable, engine="trainjob", config=config, stand_in_record=str(record)
        )
        outcome, task = tune(run)
        assert task.state == "success", outcome.log
        assert record.read_text().count("chat_template") == 1
        assert (desk.config_maps(), cluster.objects("TrainingRuntime")) == ([], [])


@MODES
def test_log_shows_no_environment_and_no_config(desk, deferrable):
    with Controllers(desk.kube, "trainjob"):
        run = desk.stand_in(
            deferrable=deferrable,
            engine="trainjob",
            env_vars={"NOTE": "to-be-kept-quiet"},
            stand_in_exit=65,
            log_level="DEBUG",
        )
        outcome, _ = tune(run)
    assert "to-be-kept-quiet" not in outcome.log
    assert "SFT_TRAINER_CONFIG_JSON_ENV_VAR" not in outcome.log


def test_logs_of_all_nodes_are_shown_on_request(desk):
    with Controllers(desk.kube, "jobset"):
        run = desk.stand_in(
            deferrable=False, engine="jobset", num_nodes=2, log_all_nodes=True, stand_in_line="loading"
        )
        outcome, task = tune(run)
    assert task.state == "success", outcome.log
    assert outcome.log.count("[node 1] loading") == 1
    assert outcome.log.count("loading") == 2
