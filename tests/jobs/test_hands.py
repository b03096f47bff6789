"""Workers, triggerers, people and API servers come and go; there is one job, and nothing is trained twice."""

import asyncio
import time
from datetime import UTC, datetime

import pytest

from airflow_provider_sft.triggers.job import SFTJobTrigger
from tests.jobs.controllers import Controllers, Kueue
from tests.jobs.desk import wait_until
from tests.kube import faults
from tests.kube.airflow_two import IS_AIRFLOW_TWO
from tests.operators.cluster import CONFIG, MODES, STAND_IN, tune

JOBSET = {"engine": "jobset", "stand_in_on_term": "save"}


@pytest.fixture
def cluster(desk):
    with Controllers(desk.kube, "jobset", kueue=Kueue()) as controllers:
        yield controllers


@MODES
def test_worker_killed_mid_run_is_followed_by_the_retry(desk, cluster, deferrable):
    run = desk.stand_in(deferrable=deferrable, **JOBSET, stand_in_steps=300, retries=1)
    run.wait_for_log("step 5/300")
    run.kill()
    outcome, task = tune(desk.airflow.resume(run))
    assert task.state == "success", outcome.log
    # A deferred task goes on in the same try: there is nothing to find again.
    assert deferrable or "of an earlier try still goes on; this try follows it" in outcome.log
    assert len(desk.kube.created_pods) == len(desk.kube.starts) == 1


@MODES
def test_job_that_finished_while_nobody_watched_gives_its_result(desk, cluster, deferrable):
    run = desk.stand_in(deferrable=deferrable, **JOBSET, stand_in_steps=100, retries=1)
    run.wait_for_log("step 5/100")
    run.kill()
    desk.kube.wait_for_pod(lambda pod: pod["status"]["phase"] == "Succeeded")
    outcome, task = tune(desk.airflow.resume(run))
    assert (task.state, task.xcoms["return_value"]["steps"]) == ("success", 100), outcome.log
    assert len(desk.kube.created_pods) == 1
    assert cluster.jobs() == []


def test_job_that_failed_for_good_while_nobody_watched_fails_the_task(desk, cluster):
    run = desk.stand_in(deferrable=False, **JOBSET, stand_in_steps=60, stand_in_exit=65, retries=1)
    run.wait_for_log("step 5/60")
    run.kill()
    wait_until(lambda: "Failed" in str(cluster.jobs()[0].get("status")))
    outcome, task = tune(desk.airflow.resume(run))
    assert task.state == "failed", outcome.log
    assert "The reason the trainer gave." in outcome.log
    assert len(desk.kube.created_pods) == 1


def test_sync_task_told_to_end_lets_the_nodes_save_and_the_retry_starts_a_job(desk, cluster):
    run = desk.stand_in(deferrable=False, **JOBSET, stand_in_steps=200, stand_in_line="loading", retries=1)
    run.wait_for_log("step 5/200")
    run.terminate()
    outcome, task = tune(run)
    assert "told to end; the job is deleted, and its nodes have 5 s to save." in outcome.log
    assert (task.state, task.try_number) == ("success", 2), outcome.log
    # Airflow 2 ends the task at once, and its next try waits until the nodes have saved.
    assert (outcome.log.count("loading"), outcome.log.count("saving")) == (2, 0 if IS_AIRFLOW_TWO else 1)
    deletion = next(each for each in desk.kube.requests if each.verb == "delete")
    assert deletion.body["propagationPolicy"] == "Foreground"
    assert deletion.body["preconditions"]["uid"]


def test_sync_task_told_to_end_leaves_the_job_where_it_is_to_be_kept(desk, cluster):
    kept = {"on_kill_action": "keep_pod", "retries": 1}
    run = desk.stand_in(deferrable=False, **JOBSET, **kept, stand_in_steps=200)
    run.wait_for_log("step 5/200")
    run.terminate()
    outcome, task = tune(run)
    assert "told to end; the job goes on, as on_kill_action says." in outcome.log
    assert (task.state, task.try_number) == ("success", 2), outcome.log
    assert len(desk.kube.created_pods) == 1


@MODES
def test_task_timed_out_deletes_the_job_and_its_pods(desk, cluster, deferrable):
    run = desk.stand_in(deferrable=deferrable, **JOBSET, stand_in_steps=3000, execution_timeout_s=6)
    outcome, task = tune(run)
    assert task.state == "failed", outcome.log
    wait_until(lambda: not cluster.jobs() and not desk.kube.pods())


@MODES
def test_job_deleted_by_somebody_is_retried(desk, cluster, deferrable):
    run = desk.stand_in(deferrable=deferrable, **JOBSET, stand_in_steps=200, retries=1)
    run.wait_for_log("step 5/200")
    custom_of(desk).delete_namespaced_custom_object(
        "jobset.x-k8s.io", "v1alpha2", "default", "jobsets", cluster.jobs()[0]["metadata"]["name"]
    )
    outcome, task = tune(run)
    assert (task.state, task.try_number) == ("success", 2), outcome.log
    assert "is gone: somebody deleted it. The retry resumes" in outcome.log


@MODES
def test_job_that_kueue_stopped_for_good_is_not_retried(desk, cluster, deferrable):
    run = desk.stand_in(deferrable=deferrable, **JOBSET, queue_name="lq", stand_in_steps=3000, retries=3)
    run.wait_for_log("step 5/3000")
    cluster.change("Workload", lambda workload: workload["spec"].update(active=False))
    outcome, task = tune(run)
    assert (task.state, task.try_number) == ("failed", 1), outcome.log
    assert "Kueue stopped the job for good" in outcome.log


@pytest.mark.parametrize(
    "fault",
    [
        faults.HttpError(path="/jobsets", status=429, retry_after_s=1, times=2),
        faults.HttpError(path="watch=true", status=500, times=4),
        faults.CutConnection(path="/jobsets", executed=True, times=3),
        faults.CutWatch(path="watch=true", times=12),
        faults.CutWatch(path="watch=true", abrupt=False, times=12),
        faults.CutLog(path="/log", after_lines=5, times=4),
        faults.HttpError(path="/log", status=500, times=3),
    ],
    ids=["429", "watch-500", "cut", "watch-cut", "watch-ended", "log-cut", "log-500"],
)
def test_api_server_that_fails_for_a_while_costs_nothing(desk, cluster, fault):
    """A worker that does not defer runs the same watch."""
    desk.kube.inject(fault)
    outcome, task = tune(desk.stand_in(deferrable=True, **JOBSET, stand_in_steps=100))
    assert task.state == "success", outcome.log
    assert len(desk.kube.created_pods) == len(desk.kube.starts) == 1
    assert [outcome.log.count(f"step {step}/100 ") for step in range(1, 101)] == [1] * 100


def test_history_that_expired_is_listed_again(desk, cluster):
    run = desk.stand_in(deferrable=True, **JOBSET, stand_in_steps=200)
    run.wait_for_log("step 5/200")
    desk.kube.expire_history()
    desk.kube.inject(faults.CutWatch(path="watch=true", times=3, after_events=0))
    outcome, task = tune(run)
    assert task.state == "success", outcome.log


@MODES
def test_expired_token_is_read_anew(desk, cluster, deferrable):
    run = desk.stand_in(deferrable=deferrable, **JOBSET, stand_in_steps=200)
    run.wait_for_log("step 5/200")
    desk.kube.expire_token()
    outcome, task = tune(run)
    assert task.state == "success", outcome.log
    assert len(desk.kube.created_pods) == 1
    assert [outcome.log.count(f"step {step}/200 ") for step in range(1, 201)] == [1] * 200


def test_lost_answer_to_the_creation_makes_no_second_job(desk, cluster):
    desk.kube.inject(faults.CutConnection(path="/jobsets", method="POST", executed=True))
    outcome, task = tune(desk.stand_in(deferrable=False, **JOBSET))
    assert task.state == "success", outcome.log
    assert len(desk.kube.created_pods) == 1


def test_refused_job_fails_without_the_request_in_the_log(desk, cluster):
    desk.kube.inject(
        faults.HttpError(path="/jobsets", method="POST", status=422, message="spec is invalid", times=9)
    )
    outcome, task = tune(desk.stand_in(deferrable=False, **JOBSET, retries=3))
    assert (task.state, task.try_number) == ("failed", 1), outcome.log
    assert "Kubernetes refuses the JobSet. It says 422: " in outcome.log
    assert "SFT_TRAINER_CONFIG_JSON_ENV_VAR" not in outcome.log


def test_creation_is_checked_strictly(desk, cluster):
    tune(desk.stand_in(deferrable=False, **JOBSET))
    created = next(
        each
        for each in desk.kube.requests
        if (each.verb, each.resource) == ("create", "jobsets.jobset.x-k8s.io")
    )
    assert created.query["fieldValidation"] == "Strict"


def custom_of(desk):
    from kubernetes import client, config

    return client.CustomObjectsApi(config.new_client_from_config(str(desk.kubeconfig)))


def make_job(desk, steps=200):
    """A JobSet as the operator sends it, told by its identity."""
    from airflow_provider_sft.engines.registry import ENGINES
    from airflow_provider_sft.operators import SFTJobOperator
    from tests.operators.task import make_operator

    env = {"STAND_IN_STEPS": str(steps), "STAND_IN_ON_TERM": "save", "SFT_RUN_ID": "r"}
    operator = make_operator(
        SFTJobOperator,
        config=CONFIG,
        image="busybox",
        cmds=STAND_IN,
        gpus=0,
        env_vars=env,
        namespace="default",
        termination_grace_period=5,
    )
    pod = operator.build_pod_request_obj(dry_run=True)
    (manifest,) = operator.build_manifests(ENGINES["jobset"], pod)
    return custom_of(desk).create_namespaced_custom_object(
        "jobset.x-k8s.io", "v1alpha2", "default", "jobsets", manifest
    )


def make_trigger(desk, job):
    return SFTJobTrigger(
        engine="jobset",
        limits={"queue_s": 60, "startup_s": 60, "run_s": None, "workload_s": 60},
        pod_name=job["metadata"]["name"],
        pod_namespace="default",
        pod_uid=job["metadata"]["uid"],
        trigger_start_time=datetime.now(UTC),
        base_container_name="node",
        kubernetes_conn_id=None,
        connection_extras={"kube_config_path": str(desk.kubeconfig)},
        config_dict=None,
        poll_interval=0.1,
    )


async def first_event(trigger):
    return (await anext(trigger.run())).payload


def is_running(desk):
    return any(pod["status"].get("phase") == "Running" for pod in desk.kube.pods())


async def watch_a_while(trigger, seconds=2.0):
    task = asyncio.create_task(first_event(trigger))
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("utc_offset_h", [9, -8])
def test_triggerer_that_takes_over_goes_on_in_log_and_clock_where_the_other_stopped(
    desk, cluster, capfd, utc_offset_h
):
    desk.kube.move_node(utc_offset_h)
    desk.kube.inject(faults.CutLog(path="/log", after_lines=20, times=4))
    job = make_job(desk, steps=400)
    wait_until(lambda: is_running(desk))

    async def hand_over():
        await watch_a_while(make_trigger(desk, job))
        left = cluster.jobs()[0]["metadata"]["annotations"]["airflow-provider-sft/watched"]
        await asyncio.sleep(0.5)
        return left, await first_event(make_trigger(desk, job))

    left, event = asyncio.run(hand_over())
    assert '"phase":"run"' in left
    assert (event["status"], event["failure"], event["finished"]) == ("ended", "", True)
    log = "".join(capfd.readouterr())
    assert [log.count(f"step {step}/400 ") for step in range(1, 401)] == [1] * 400


def test_triggerer_that_shuts_down_leaves_the_job_alone(desk, cluster):
    job = make_job(desk)
    wait_until(lambda: is_running(desk))
    asyncio.run(watch_a_while(make_trigger(desk, job), 1.0))
    assert "deletionTimestamp" not in cluster.jobs()[0]["metadata"]


def test_deferred_task_that_is_killed_deletes_the_job_and_its_pods_with_their_grace(desk, cluster):
    job = make_job(desk, steps=2000)
    wait_until(lambda: is_running(desk))
    time.sleep(0.5)  # Python catches SIGTERM from when the stand-in has begun
    asyncio.run(make_trigger(desk, job).on_kill())
    wait_until(lambda: not cluster.jobs() and not desk.kube.pods())
    name = desk.kube.created_pods[0]["metadata"]["name"]
    assert '"exit_code": 206' in str(desk.kube.pod_history(name)[-1]["status"])


def test_killed_task_leaves_another_job_of_the_same_name_alone(desk, cluster):
    job = make_job(desk)
    job["metadata"]["uid"] = "another"
    asyncio.run(make_trigger(desk, job).on_kill())
    assert "deletionTimestamp" not in cluster.jobs()[0]["metadata"]


def test_trigger_survives_its_serialization(desk, cluster):
    job = make_job(desk, steps=3)
    path, arguments = make_trigger(desk, job).serialize()
    assert path == "airflow_provider_sft.triggers.job.SFTJobTrigger"
    event = asyncio.run(first_event(SFTJobTrigger(**arguments)))
    assert (event["status"], event["uid"]) == ("ended", job["metadata"]["uid"])
    assert event["result"]["model_path"] == "/data/output/final"


def test_trigger_does_not_follow_another_job_of_the_same_name(desk, cluster):
    job = make_job(desk)
    job["metadata"]["uid"] = "another"
    assert asyncio.run(first_event(make_trigger(desk, job)))["status"] == "gone"


FULL = (
    'Error creating: pods "tune-x" is forbidden: exceeded quota: team-gpus, requested: requests.nvidia.com/gpu=1, '
    "used: requests.nvidia.com/gpu=8, limited: requests.nvidia.com/gpu=8"
)


def refuse_pods(desk, job_name):
    """What the Job controller says where the namespace's quota is full."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    of = {"kind": "Job", "apiVersion": "batch/v1", "namespace": "default", "name": job_name}
    event = {
        "metadata": {"name": f"{job_name}.1", "namespace": "default"},
        "involvedObject": of,
        "reason": "FailedCreate",
        "type": "Warning",
        "message": FULL,
        "lastTimestamp": now,
    }
    desk.core().create_namespaced_event("default", event)


@MODES
def test_quota_that_keeps_a_jobs_pods_out_is_waited_for_past_the_time_to_start(desk, deferrable):
    from kubernetes import client

    run = desk.stand_in(deferrable=deferrable, engine="job", stand_in_steps=3, startup_timeout_seconds=3)
    batch = client.BatchV1Api(desk.core().api_client)
    (job,) = wait_until(lambda: batch.list_namespaced_job("default").items)
    refuse_pods(desk, job.metadata.name)
    run.wait_for_log("the namespace's quota has no room: team-gpus, requested: requests.nvidia.com/gpu=1")
    time.sleep(5)
    run.kill()
    assert "given up" not in run.log


@MODES
def test_quota_of_jobs_is_waited_for_and_costs_no_retry(desk, deferrable):
    full = 'jobs.batch "x" is forbidden: exceeded quota: jobs, requested: count/jobs.batch=1, used: count/jobs.batch=2'
    desk.kube.inject(faults.HttpError(path="/jobs", method="POST", status=403, message=full, times=2))
    with Controllers(desk.kube, "job"):
        outcome, task = tune(desk.stand_in(deferrable=deferrable, engine="job", stand_in_steps=3, retries=0))
    assert (task.state, task.try_number) == ("success", 1), outcome.log
    assert outcome.log.count("this task waits for it") == 1


def test_worker_that_was_cut_off_leaves_the_job_to_the_try_that_took_it_over(desk, cluster):
    run = desk.stand_in(deferrable=False, **JOBSET, stand_in_steps=3000, retries=1)
    run.wait_for_log("step 5/3000")

    def take_over(job):
        job["metadata"]["annotations"]["airflow-provider-sft/claimed-by"] = "a later try"

    cluster.change("JobSet", take_over)
    run.terminate()
    run.wait_for_log("A later try has taken over")
    assert "deletionTimestamp" not in cluster.jobs()[0]["metadata"]
    run.kill()
