"""Each fault shows in the API what Kubernetes shows: phase, reason, condition, message, event, and the pod's end."""

from __future__ import annotations

import base64
import json
import urllib.request
from typing import Any

import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import ProtocolError

from tests.kube import faults
from tests.kube.faults import CutLog, ImagePullError, Unschedulable, decode_fault
from tests.kube.manifests import base_state, condition, has_ended, is_running, script_pod, waiting_reason
from tests.kube.server import KubeServer

STEPS = "trap 'echo saved; exit 206' TERM; for i in 1 2 3 4 5 6 7 8 9; do echo step $i; sleep 0.05; done; sleep 60"


def reasons(core: client.CoreV1Api, name: str = "p") -> list[str]:
    events = core.list_namespaced_event("default", field_selector=f"involvedObject.name={name}").items
    return [event.reason for event in events]


def test_unschedulable_pod_waits_and_quotes_the_scheduler_as_it_changes(
    kube: Any, core: client.CoreV1Api
) -> None:
    messages = (
        "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
        "0/4 nodes are available: 4 Too many pods.",
    )
    kube.inject(Unschedulable(for_s=0.4, messages=messages))
    core.create_namespaced_pod("default", script_pod("p", "exit 0"))
    assert condition(kube.wait_for_pod(has_ended), "PodScheduled")["status"] == "True"
    refused = [
        p for p in kube.pod_history("p") if condition(p, "PodScheduled").get("reason") == "Unschedulable"
    ]
    assert tuple(dict.fromkeys(condition(p, "PodScheduled")["message"] for p in refused)) == messages
    assert all(p["status"]["phase"] == "Pending" and "containerStatuses" not in p["status"] for p in refused)
    assert reasons(core)[:3] == ["FailedScheduling", "FailedScheduling", "Scheduled"]


def test_missing_claim_is_unschedulable_until_it_is_there(kube: KubeServer, core: client.CoreV1Api) -> None:
    volumes = [{"name": "o", "persistentVolumeClaim": {"claimName": "out"}}]
    core.create_namespaced_pod("default", script_pod("p", "exit 0", volumes=volumes))
    pod = kube.wait_for_pod(lambda p: bool(condition(p, "PodScheduled")))
    assert 'persistentvolumeclaim "out" not found' in condition(pod, "PodScheduled")["message"]
    kube.add_claim("out")
    kube.wait_for_pod(has_ended)


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (404, "docker.io/library/busybox: not found"),
        (401, "401 Unauthorized"),
        (429, "429 Too Many Requests"),
    ],
)
def test_image_that_cannot_be_pulled_waits_with_the_registry_s_text(
    kube: KubeServer, core: client.CoreV1Api, status: int, sentence: str
) -> None:
    kube.inject(ImagePullError(status=status, for_s=0.3))
    core.create_namespaced_pod("default", script_pod("p", "exit 0"))
    kube.wait_for_pod(has_ended)
    waits = {reason: pod for pod in kube.pod_history("p") if (reason := waiting_reason(pod))}
    for reason in ("ErrImagePull", "ImagePullBackOff"):
        assert sentence in base_state(waits[reason])["waiting"]["message"]
    assert {"Pulling", "Failed", "BackOff"} <= set(reasons(core))


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        ({"image": "Not A Name"}, "InvalidImageName"),
        ({"image": "unknown:1"}, "ErrImagePull"),
        ({"image": "unknown:1", "imagePullPolicy": "Never"}, "ErrImageNeverPull"),
    ],
)
def test_image_without_a_fault_is_judged_by_its_name(
    kube: Any, core: Any, base: dict[str, Any], reason: str
) -> None:
    core.create_namespaced_pod("default", script_pod("p", "exit 0", base=base))
    kube.wait_for_pod(lambda pod: waiting_reason(pod) == reason)


def test_missing_secret_is_a_config_error_until_it_is_there(kube: KubeServer, core: client.CoreV1Api) -> None:
    env = [{"name": "T", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}]
    core.create_namespaced_pod("default", script_pod("p", "echo $T", base={"env": env}))
    pod = kube.wait_for_pod(lambda p: waiting_reason(p) == "CreateContainerConfigError")
    assert base_state(pod)["waiting"]["message"] == 'secret "hub" not found'
    kube.add_secret("hub", {"other": "x"})
    text = "couldn't find key token in Secret default/hub"
    kube.wait_for_pod(lambda p: base_state(p).get("waiting", {}).get("message") == text)


def test_missing_config_map_volume_keeps_the_container_creating(
    kube: KubeServer, core: client.CoreV1Api
) -> None:
    volumes = [{"name": "c", "configMap": {"name": "cfg"}}]
    core.create_namespaced_pod("default", script_pod("p", "exit 0", volumes=volumes))
    kube.wait_for_pod(lambda p: waiting_reason(p) == "ContainerCreating" and "FailedMount" in reasons(core))
    event = core.list_namespaced_event("default", field_selector="reason=FailedMount").items[0]
    assert event.message == 'MountVolume.SetUp failed for volume "c" : configmap "cfg" not found'


def test_evicted_pod_fails_with_the_kubelet_s_text(kube: KubeServer, core: client.CoreV1Api) -> None:
    kube.inject(faults.Evicted(on_line="step 3"))
    core.create_namespaced_pod("default", script_pod("p", STEPS))
    pod = kube.wait_for_pod(has_ended)
    assert (pod["status"]["phase"], pod["status"]["reason"]) == ("Failed", "Evicted")
    assert "low on resource: ephemeral-storage" in pod["status"]["message"]
    assert condition(pod, "DisruptionTarget")["reason"] == "TerminationByKubelet"
    assert base_state(pod)["terminated"]["exitCode"] == 137
    assert "Evicted" in reasons(core)


def test_oom_killed_container_says_so(kube: KubeServer, core: client.CoreV1Api) -> None:
    kube.inject(faults.OOMKilled(after_lines=2))
    core.create_namespaced_pod("default", script_pod("p", STEPS))
    ended = base_state(kube.wait_for_pod(has_ended))["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")


def test_killed_container_gives_no_reason(kube: KubeServer, core: client.CoreV1Api) -> None:
    kube.inject(faults.Killed(after_s=0.1))
    core.create_namespaced_pod("default", script_pod("p", STEPS))
    ended = base_state(kube.wait_for_pod(has_ended))["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (137, "Error")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (faults.Preempted(after_lines=2), "PreemptionByScheduler"),
        (faults.Drained(after_lines=2), "EvictionByEvictionAPI"),
    ],
)
def test_displaced_pod_is_a_disruption_target_saves_and_is_gone(
    kube: KubeServer, core: client.CoreV1Api, fault: faults.Fault, reason: str
) -> None:
    kube.inject(fault)
    core.create_namespaced_pod("default", script_pod("p", STEPS))
    history = kube.wait_until_gone("p")
    marked = [p for p in history if condition(p, "DisruptionTarget").get("reason") == reason]
    assert "deletionTimestamp" not in marked[0]["metadata"]  # marked first, then deleted
    assert base_state(history[-1])["terminated"]["exitCode"] == 206


def test_drained_node_takes_no_pod_until_it_is_uncordoned(kube: KubeServer, core: client.CoreV1Api) -> None:
    kube.inject(faults.Drained())
    core.create_namespaced_pod("default", script_pod("p", STEPS))
    kube.wait_until_gone("p")
    core.create_namespaced_pod("default", script_pod("q", "exit 0"))
    pod = kube.wait_for_pod(lambda p: bool(condition(p, "PodScheduled")))
    assert "1 node(s) were unschedulable" in condition(pod, "PodScheduled")["message"]
    kube.uncordon()
    kube.wait_for_pod(has_ended)


def test_eviction_through_the_api_displaces_one_pod(kube: KubeServer, core: client.CoreV1Api) -> None:
    core.create_namespaced_pod("default", script_pod("p", STEPS))
    kube.wait_for_pod(is_running)
    core.create_namespaced_pod_eviction(
        "p", "default", client.V1Eviction(metadata=client.V1ObjectMeta(name="p"))
    )
    kube.wait_until_gone("p")


def test_pod_on_a_lost_node_stays_running_in_the_api_until_it_is_collected(
    kube: Any, core: client.CoreV1Api
) -> None:
    kube.inject(faults.NodeLost(after_lines=1, gone_after_s=2))
    core.create_namespaced_pod("default", script_pod("p", STEPS))
    kube.wait_for_pod(lambda p: p["status"].get("reason") == "NodeLost")
    with pytest.raises(ApiException, match="no route to host") as raised:
        core.read_namespaced_pod_log("p", "default")
    assert raised.value.status == 500
    last = kube.wait_until_gone("p")[-1]
    assert (last["status"]["phase"], is_running(last)) == ("Running", True)
    assert condition(last, "DisruptionTarget")["reason"] == "DeletionByTaintManager"
    assert last["metadata"]["deletionTimestamp"]


@pytest.mark.parametrize("when", [{"before_start": True}, {"after_lines": 2}])
def test_vanished_pod_is_404(kube: KubeServer, core: client.CoreV1Api, when: dict[str, Any]) -> None:
    kube.inject(faults.Vanished(**when))
    core.create_namespaced_pod("default", script_pod("p", STEPS))
    kube.wait_until_gone("p")
    with pytest.raises(ApiException) as raised:
        core.read_namespaced_pod("p", "default")
    assert raised.value.status == 404
    assert len(kube.starts) == (0 if "before_start" in when else 1)


def test_disruption_strikes_a_running_pod_at_once(kube: KubeServer, core: client.CoreV1Api) -> None:
    core.create_namespaced_pod("default", script_pod("p", STEPS))
    kube.wait_for_pod(is_running)
    kube.strike(
        "p",
        faults.Evicted(
            message="Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. "
        ),
    )
    assert kube.wait_for_pod(has_ended)["status"]["message"].startswith("Pod ephemeral local storage usage")


def test_fault_strikes_as_many_pods_as_it_says_and_only_those_it_names(
    kube: Any, core: client.CoreV1Api
) -> None:
    kube.inject(faults.OOMKilled(pod="^a", times=1))
    for name in ("b1", "a1", "a2"):
        core.create_namespaced_pod("default", script_pod(name, "sleep 0.3"))
    ended = {name: base_state(kube.wait_for_pod(has_ended, name=name)) for name in ("a1", "a2", "b1")}
    assert [name for name, state in ended.items() if state["terminated"]["reason"] == "OOMKilled"] in (
        ["a1"],
        ["a2"],
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", None),
        (b"x" * 5000, "x" * 4096),
        ("é".encode() * 2048 + b"a", "\ufffd" + "é" * 2047 + "a"),
        (b"\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
    ],
)
def test_termination_message_is_what_the_test_says(
    kube: Any, core: Any, data: bytes, message: str | None
) -> None:
    kube.inject(faults.TerminationMessage(data=data))
    core.create_namespaced_pod("default", script_pod("p", "echo other > $TERMINATION_LOG_FILE"))
    assert base_state(kube.wait_for_pod(has_ended))["terminated"].get("message") == message


def test_log_stream_breaks_while_the_container_goes_on(kube: KubeServer, core: client.CoreV1Api) -> None:
    kube.inject(CutLog(after_lines=2))
    core.create_namespaced_pod("default", script_pod("p", STEPS))
    kube.wait_for_start()
    with pytest.raises(ProtocolError):
        list(core.read_namespaced_pod_log("p", "default", follow=True, _preload_content=False))
    assert is_running(kube.pod("p"))


def test_log_stream_ends_quietly_while_the_container_goes_on(
    kube: KubeServer, core: client.CoreV1Api
) -> None:
    kube.inject(CutLog(after_lines=2, abrupt=False))
    core.create_namespaced_pod("default", script_pod("p", STEPS))
    kube.wait_for_start()
    stream = core.read_namespaced_pod_log("p", "default", follow=True, _preload_content=False)
    assert b"".join(stream) == b"step 1\nstep 2\n"
    assert is_running(kube.pod("p"))


def test_status_can_lag_behind_the_log(kube: KubeServer, core: client.CoreV1Api) -> None:
    kube.inject(faults.StatusLag(seconds=0.3))
    core.create_namespaced_pod("default", script_pod("p", "sleep 0.1; echo end"))
    kube.wait_for_pod(is_running)
    core.read_namespaced_pod_log("p", "default", follow=True)
    assert is_running(kube.pod("p"))
    kube.wait_for_pod(has_ended)


def test_faults_can_be_set_and_the_record_read_over_http(kube: KubeServer, core: client.CoreV1Api) -> None:
    fault = {"kind": "TerminationMessage", "data": base64.b64encode(b"over http").decode()}
    urllib.request.urlopen(f"{kube.url}/_test/faults", data=json.dumps(fault).encode()).close()
    core.create_namespaced_pod("default", script_pod("p", "exit 1"))
    assert base_state(kube.wait_for_pod(has_ended))["terminated"]["message"] == "over http"
    record = json.load(urllib.request.urlopen(f"{kube.url}/_test/record"))
    assert [start["pod"] for start in record["starts"]] == ["p"]
    assert ("POST", "/api/v1/namespaces/default/pods", 201) in [
        (request["method"], request["path"], request["status"]) for request in record["requests"]
    ]


def test_decode_fault_of_an_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'Earthquake' is not known\. Use one of .*Evicted"):
        decode_fault({"kind": "Earthquake"})
