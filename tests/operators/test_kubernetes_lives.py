"""K8-K11, K13: workers, triggerers and API servers come and go; there is one pod, and nothing is trained twice."""

import asyncio
import json
import re
import time
from datetime import UTC, datetime

import pytest

from airflow_provider_sft.triggers.kubernetes import SFTTrainerTrigger
from tests.kube import faults
from tests.kube.airflow_two import IS_AIRFLOW_TWO
from tests.operators.cluster import CONFIG, MODES, tune

# How far it came is in the failure's sentence, which Airflow 2 leaves no time for.
IT_REACHED = "" if IS_AIRFLOW_TWO else r" It reached step \d+"


def wait_for_line(run, text, timeout_s=60):
    end = time.monotonic() + timeout_s
    while text not in run.log:
        if time.monotonic() > end:
            raise TimeoutError(f"{text!r} did not come up in:\n{run.log[-3000:]}")
        time.sleep(0.05)


def running(pod):
    return pod["status"]["phase"] == "Running"


@MODES
def test_worker_killed_mid_run_is_followed_by_the_retry(desk, deferrable):
    run = desk.stand_in(deferrable=deferrable, stand_in_steps=300, retries=1)
    wait_for_line(run, "step 5/300")
    run.kill()
    outcome, task = tune(desk.airflow.resume(run))
    assert task.state == "success", outcome.log
    # A deferred task goes on in the same try: there is nothing to find again.
    assert deferrable or "still runs; this try follows it" in outcome.log
    assert len(desk.kube.created_pods) == len(desk.kube.starts) == 1


@MODES
def test_pod_that_finished_while_nobody_watched_gives_its_result(desk, deferrable):
    run = desk.stand_in(deferrable=deferrable, stand_in_steps=100, retries=1)
    wait_for_line(run, "step 5/100")
    run.kill()
    desk.kube.wait_for_pod(lambda pod: pod["status"]["phase"] == "Succeeded")
    outcome, task = tune(desk.airflow.resume(run))
    assert (task.state, task.xcoms["return_value"]["steps"]) == ("success", 100), outcome.log
    assert deferrable or "ended while nobody watched; its outcome counts." in outcome.log
    assert desk.counts == (1, 1)
    assert desk.kube.pods() == []


@MODES
def test_pod_that_failed_for_good_while_nobody_watched_fails_the_task(desk, deferrable):
    run = desk.stand_in(deferrable=deferrable, stand_in_steps=60, stand_in_exit=65, retries=1)
    wait_for_line(run, "step 5/60")
    run.kill()
    desk.kube.wait_for_pod(lambda pod: pod["status"]["phase"] == "Failed")
    outcome, task = tune(desk.airflow.resume(run))
    assert task.state == "failed", outcome.log
    assert "The reason the trainer gave." in outcome.log
    assert desk.counts == (1, 1)


@MODES
def test_pod_that_was_interrupted_while_nobody_watched_is_replaced_at_once(desk, deferrable):
    run = desk.stand_in(deferrable=deferrable, stand_in_steps=60, retries=1)
    wait_for_line(run, "step 5/60")
    run.kill()
    pod = desk.kube.wait_for_pod(running)
    desk.kube.strike(pod["metadata"]["name"], faults.Killed(signal=9))
    desk.kube.wait_for_pod(lambda pod: pod["status"]["phase"] == "Failed")
    outcome, task = tune(desk.airflow.resume(run))
    assert task.state == "success", outcome.log
    assert "ended by SIGKILL (exit code 137)" in outcome.log
    assert desk.counts == (2, 2)


def test_pod_of_the_same_name_is_not_taken_for_ours(desk):
    run = desk.stand_in(deferrable=False, stand_in_steps=300, retries=1)
    wait_for_line(run, "step 5/300")
    run.kill()
    ours = desk.kube.wait_for_pod(running)
    desk.kube.strike(ours["metadata"]["name"], faults.Vanished())
    while desk.kube.pods():
        time.sleep(0.05)
    stranger = {**ours, "status": {}, "metadata": {**ours["metadata"], "annotations": {}}}
    for server_made in ("uid", "resourceVersion", "creationTimestamp"):
        stranger["metadata"].pop(server_made)
    client_of(desk).create_namespaced_pod("default", stranger)
    outcome, task = tune(desk.airflow.resume(run))
    assert task.state == "success", outcome.log
    assert len(desk.kube.created_pods) == 3
    assert len(desk.kube.pods()) == 1  # the stranger is left alone


def test_sync_task_told_to_end_lets_the_pod_save_and_the_retry_starts_one(desk):
    run = desk.stand_in(deferrable=False, stand_in_steps=300, stand_in_on_term="save", retries=1)
    wait_for_line(run, "step 5/300")
    run.terminate()
    outcome, task = tune(run)
    assert re.search(
        rf"told to end; the pod got SIGTERM, has 5 s to save, and is deleted.{IT_REACHED}", outcome.log
    )
    assert (task.state, task.try_number) == ("success", 2), outcome.log
    assert desk.counts == (2, 2)


@pytest.mark.skipif(IS_AIRFLOW_TWO, reason="it ends the task at once")
def test_sync_task_told_to_end_shows_what_the_pod_says_to_its_last_line(desk):
    run = desk.stand_in(
        deferrable=False,
        stand_in_steps=3000,
        stand_in_on_term="save",
        stand_in_save_s=4,
        poll_interval=3,
        termination_grace_period=60,
    )
    wait_for_line(run, "step 5/3000")
    run.terminate()
    outcome, task = tune(run)
    assert task.state == "failed", outcome.log
    assert [outcome.log.count(line) for line in (" saving ", " all is saved ")] == [1, 1]


def test_sync_task_told_to_end_may_leave_its_pod_to_the_retry(desk):
    run = desk.stand_in(deferrable=False, stand_in_steps=300, on_kill_action="keep_pod", retries=1)
    wait_for_line(run, "step 5/300")
    run.terminate()
    outcome, task = tune(run)
    assert re.search(
        f"told to end; the pod is left running, as on_kill_action says.{IT_REACHED}", outcome.log
    )
    assert (task.state, task.try_number) == ("success", 2), outcome.log
    assert desk.counts == (1, 1)


def test_sync_task_told_to_end_is_no_success_even_if_the_trainer_finishes(desk):
    run = desk.stand_in(deferrable=False, stand_in_steps=300, stand_in_on_term="succeed")
    wait_for_line(run, "step 5/300")
    run.terminate()
    outcome, task = tune(run)
    assert task.state == "failed", outcome.log


@MODES
def test_task_timed_out_gives_the_pod_sigterm_and_deletes_it(desk, deferrable):
    run = desk.stand_in(
        deferrable=deferrable, stand_in_steps=3000, stand_in_on_term="save", execution_timeout_s=3
    )
    outcome, task = tune(run)
    assert task.state == "failed", outcome.log
    sentence = (
        "execution_timeout of 0:00:03 was reached." if deferrable else "the pod got SIGTERM, has 5 s to save"
    )
    assert sentence in outcome.log
    desk.kube.wait_until_gone(desk.kube.created_pods[0]["metadata"]["name"])
    assert (desk.counts, desk.exit_codes()) == ((1, 1), [206])


@MODES
@pytest.mark.parametrize(
    "fault",
    [
        faults.HttpError(path="/pods", status=429, retry_after_s=1, times=2),
        faults.HttpError(path="/pods", status=500, times=4),
        faults.CutConnection(path="/pods", executed=True, times=3),
        faults.HttpError(path="/log", status=500, times=3),
        faults.CutConnection(path="/log", after_bytes=60, times=3),
    ],
    ids=["429", "500", "cut", "log-500", "log-cut"],
)
def test_api_server_that_fails_for_a_while_costs_nothing(desk, deferrable, fault):
    desk.kube.inject(fault)
    outcome, task = tune(desk.stand_in(deferrable=deferrable, stand_in_steps=30))
    assert task.state == "success", outcome.log
    assert len(desk.kube.created_pods) == len(desk.kube.starts) == 1
    assert [outcome.log.count(f"step {step}/30 ") for step in range(1, 31)] == [1] * 30
    assert '"Failure"' not in outcome.log  # the API server's own words are no line of the trainer


@MODES
def test_lost_answer_to_the_creation_makes_no_second_pod(desk, deferrable):
    desk.kube.inject(faults.CutConnection(path="/pods$", method="POST", executed=True))
    outcome, task = tune(desk.stand_in(deferrable=deferrable))
    assert task.state == "success", outcome.log
    assert len(desk.kube.created_pods) == 1


@MODES
def test_expired_token_is_read_anew(desk, deferrable):
    run = desk.stand_in(deferrable=deferrable, stand_in_steps=200)
    wait_for_line(run, "step 5/200")
    desk.kube.expire_token()
    outcome, task = tune(run)
    assert task.state == "success", outcome.log
    assert "The Kubernetes API failed (401: Unauthorized); the pod is left alone." in outcome.log
    assert desk.counts == (1, 1)
    assert [outcome.log.count(f"step {step}/200 ") for step in range(1, 201)] == [1] * 200


@MODES
def test_pod_that_kubernetes_refuses_fails_without_the_request_in_the_log(desk, deferrable):
    desk.kube.inject(
        faults.HttpError(path="/pods$", status=422, message="Pod is invalid: spec.volumes", times=9)
    )
    outcome, task = tune(desk.stand_in(deferrable=deferrable, retries=3))
    assert task.state == "failed", outcome.log
    assert "Kubernetes refuses the pod. It says 422: " in outcome.log
    assert "SFT_TRAINER_CONFIG_JSON_ENV_VAR" not in outcome.log


@MODES
@pytest.mark.parametrize("code", [0, 65, 206])
def test_log_shows_no_environment_and_no_config(desk, deferrable, code):
    run = desk.stand_in(
        deferrable=deferrable, stand_in_exit=code, env_vars={"NOTE": "to-be-kept-quiet"}, log_level="DEBUG"
    )
    outcome, _ = tune(run)
    assert "to-be-kept-quiet" not in outcome.log
    assert "SFT_TRAINER_CONFIG_JSON_ENV_VAR" not in outcome.log


@MODES
def test_progress_is_told_once_and_read_by_people(desk, deferrable):
    outcome, _ = tune(desk.stand_in(deferrable=deferrable, stand_in_steps=150))
    assert [outcome.log.count(f"step {step}/150 ") for step in range(1, 151)] == [1] * 150
    assert '"event":"progress"' not in outcome.log


def client_of(desk):
    from kubernetes import client, config

    return client.CoreV1Api(config.new_client_from_config(str(desk.kubeconfig)))


def make_trigger(desk, pod):
    return SFTTrainerTrigger(
        pod_name=pod["metadata"]["name"],
        pod_namespace="default",
        pod_uid=pod["metadata"]["uid"],
        trigger_start_time=datetime.now(UTC),
        base_container_name="base",
        kubernetes_conn_id=None,
        connection_extras={"kube_config_path": str(desk.kubeconfig)},
        config_dict=None,
        poll_interval=0.1,
    )


def make_pod(desk, steps=200):
    from tests.operators.cluster import STAND_IN

    env = {"STAND_IN_STEPS": str(steps), "SFT_RUN_ID": "r", "SFT_TRAINER_CONFIG_JSON_ENV_VAR": "e30="}
    container = {
        "name": "base",
        "image": "busybox",
        "command": STAND_IN,
        "env": [{"name": name, "value": value} for name, value in env.items()],
    }
    spec = {"containers": [container], "restartPolicy": "Never", "terminationGracePeriodSeconds": 3}
    client_of(desk).create_namespaced_pod("default", {"metadata": {"name": "tune"}, "spec": spec})
    return desk.kube.wait_for_pod(running)


async def first_event(trigger):
    return (await anext(trigger.run())).payload


def test_triggerer_that_shuts_down_leaves_the_pod_alone(desk):
    pod = make_pod(desk)

    async def shut_down():
        trigger = make_trigger(desk, pod)
        task = asyncio.create_task(first_event(trigger))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await trigger.cleanup()

    asyncio.run(shut_down())
    assert [p["metadata"]["uid"] for p in desk.kube.pods()] == [pod["metadata"]["uid"]]
    assert "deletionTimestamp" not in desk.kube.pods()[0]["metadata"]


@pytest.mark.parametrize("utc_offset_h", [0, 9, -8])
def test_triggerer_that_takes_over_goes_on_in_the_log_where_the_other_stopped(desk, capfd, utc_offset_h):
    desk.kube.move_node(utc_offset_h)
    pod = make_pod(desk, steps=150)

    async def hand_over():
        task = asyncio.create_task(first_event(make_trigger(desk, pod)))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.5)
        return await first_event(make_trigger(desk, pod))

    assert asyncio.run(hand_over())["status"] == "ended"
    log = "".join(capfd.readouterr())
    assert [log.count(f"step {step}/150 ") for step in range(1, 151)] == [1] * 150


def test_deferred_task_that_is_killed_deletes_the_pod_with_its_grace(desk):
    pod = make_pod(desk)
    asyncio.run(make_trigger(desk, pod).on_kill())
    leaving = desk.kube.pod("tune")
    assert leaving is None or "deletionTimestamp" in leaving["metadata"]


def test_trigger_survives_its_serialization(desk):
    pod = make_pod(desk, steps=3)
    path, arguments = make_trigger(desk, pod).serialize()
    assert path == "airflow_provider_sft.triggers.kubernetes.SFTTrainerTrigger"
    arguments["trigger_start_time"] = arguments["trigger_start_time"]
    event = asyncio.run(first_event(SFTTrainerTrigger(**arguments)))
    assert (event["status"], event["uid"]) == ("ended", pod["metadata"]["uid"])
    assert "env" not in json.dumps(event["pod"])


def test_trigger_does_not_follow_another_pod_of_the_same_name(desk):
    pod = make_pod(desk)
    pod["metadata"]["uid"] = "another"
    assert asyncio.run(first_event(make_trigger(desk, pod)))["status"] == "gone"


@MODES
@pytest.mark.skipif(IS_AIRFLOW_TWO, reason="it makes links in the web server")
def test_links_are_xcoms_that_the_ui_reads(desk, deferrable):
    outcome, task = tune(
        desk.stand_in(deferrable=deferrable, artifacts_url="https://files.example.com/{path}")
    )
    assert task.xcoms["_link_ReportLink"] == "https://files.example.com/data/output/run/report.html"
    assert task.xcoms["_link_ModelLink"] == "https://files.example.com/data/output/final"
    assert task.xcoms["_link_TrackerLink"] == ""
    assert "Failed to push an xcom" not in outcome.log


LONG = {**CONFIG, "exp_metadata": {"note": "x" * 120_000}}
FULL = (
    'pods "tune-x" is forbidden: exceeded quota: team-gpus, requested: requests.nvidia.com/gpu=1, '
    "used: requests.nvidia.com/gpu=8, limited: requests.nvidia.com/gpu=8"
)


@MODES
def test_full_quota_is_waited_for_in_the_apis_words_and_costs_no_retry(desk, deferrable):
    desk.kube.inject(faults.HttpError(path="/pods", method="POST", status=403, message=FULL, times=3))
    outcome, task = tune(desk.stand_in(deferrable=deferrable, stand_in_steps=3, retries=0))
    assert (task.state, task.try_number) == ("success", 1), outcome.log
    assert (
        outcome.log.count('this task waits for it: pods "tune-x" is forbidden: exceeded quota: team-gpus')
        == 1
    )
    assert desk.counts == (1, 1)


@MODES
def test_quota_that_stays_full_fails_the_task_when_schedule_timeout_is_over(desk, deferrable):
    desk.kube.inject(faults.HttpError(path="/pods", method="POST", status=403, message=FULL, times=99))
    outcome, task = tune(
        desk.stand_in(deferrable=deferrable, stand_in_steps=3, schedule_timeout_seconds=2, retries=0)
    )
    assert task.state == "failed", outcome.log
    assert "quota had no room for" in outcome.log
    assert "limited: requests.nvidia.com/gpu=8" in outcome.log


def test_refusal_that_is_no_quota_fails_at_once_and_leaves_no_config_map(desk):
    refusal = 'pods "x" is forbidden: minimum memory usage per Container is 1Gi'
    desk.kube.inject(faults.HttpError(path="/pods", method="POST", status=403, message=refusal, times=1))
    outcome, task = tune(desk.stand_in(deferrable=False, stand_in_steps=3, config=LONG, retries=1))
    assert (task.state, task.try_number) == ("failed", 1), outcome.log
    assert "minimum memory usage per Container" in outcome.log
    assert desk.config_maps() == []


def test_worker_that_was_cut_off_leaves_the_pod_to_the_try_that_took_it_over(desk):
    run = desk.stand_in(deferrable=False, stand_in_steps=3000, stand_in_on_term="save", retries=1)
    wait_for_line(run, "step 5/3000")
    (pod,) = desk.kube.pods()
    mark = {"metadata": {"annotations": {"airflow-provider-sft/claimed-by": "a later try"}}}
    desk.core().patch_namespaced_pod(pod["metadata"]["name"], pod["metadata"]["namespace"], mark)
    run.terminate()
    wait_for_line(run, "is left to the later try that follows it")
    (left,) = desk.kube.pods()
    assert (left["metadata"]["uid"], "deletionTimestamp" in left["metadata"]) == (
        pod["metadata"]["uid"],
        False,
    )
    run.kill()


def test_pod_that_is_found_again_belongs_to_the_new_try(desk):
    run = desk.stand_in(deferrable=False, stand_in_steps=300, retries=1)
    wait_for_line(run, "step 5/300")
    (pod,) = desk.kube.pods()
    first = pod["metadata"]["annotations"]["airflow-provider-sft/claimed-by"]
    run.kill()
    again = desk.airflow.resume(run)
    wait_for_line(again, "this try follows it")
    mark = "airflow-provider-sft/claimed-by"
    desk.kube.wait_for_pod(lambda pod: pod["metadata"]["annotations"][mark] != first)
    outcome, task = tune(again)
    assert task.state == "success", outcome.log


@MODES
def test_pod_that_ended_with_0_and_left_no_result_stays_for_reading(desk, deferrable):
    run = desk.stand_in(deferrable=deferrable, cmds=["python3", "-c", "print('done')"])
    outcome, task = tune(run)
    assert task.state == "failed", outcome.log
    assert "left no result" in outcome.log
    assert [pod["status"]["phase"] for pod in desk.kube.pods()] == ["Succeeded"]


@MODES
def test_image_that_cannot_be_pulled_for_a_while_is_one_line(desk, deferrable):
    desk.kube.inject(faults.ImagePullError(status=503, for_s=4))
    outcome, task = tune(desk.stand_in(deferrable=deferrable, stand_in_steps=3))
    assert task.state == "success", outcome.log
    said = [line for line in outcome.log.splitlines() if "waits: the image cannot be pulled yet" in line]
    assert len(said) == 1
    assert "Back-off" not in outcome.log


@MODES
def test_api_outage_is_one_line_when_it_begins_and_one_when_it_ends(desk, deferrable):
    run = desk.stand_in(deferrable=deferrable, stand_in_steps=200)
    wait_for_line(run, "step 5/200")
    desk.kube.inject(faults.CutConnection(times=6, executed=False))
    outcome, task = tune(run)
    assert task.state == "success", outcome.log
    assert (outcome.log.count("The Kubernetes API failed"), outcome.log.count("answers again")) == (1, 1)
    assert "Retrying (" not in outcome.log
    assert "Unclosed" not in outcome.log
