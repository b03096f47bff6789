"""Pods as processes: environment, volumes, logs, exit codes, termination messages, restarts and deletion."""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, watch
from kubernetes.client.exceptions import ApiException

from tests.kube.manifests import base_state, condition, has_ended, is_running, script_pod, waiting_reason
from tests.kube.server import KubeServer

UNTIL_TERMINATED = "trap 'echo saving; exit 206' TERM; echo ready; while :; do sleep 0.02; done"


def run_pod(kube: KubeServer, core: client.CoreV1Api, pod: dict[str, Any]) -> dict[str, Any]:
    """Create a pod and wait for its end."""
    core.create_namespaced_pod("default", pod)
    return kube.wait_for_pod(has_ended, name=pod["metadata"]["name"])


def read_log(core: client.CoreV1Api, name: str, **options: Any) -> str:
    return core.read_namespaced_pod_log(name, "default", _preload_content=False, **options).data.decode()


def wait_for_line(kube: KubeServer, core: client.CoreV1Api, line: str) -> None:
    """Return when pod `p` has written `line`."""
    kube.wait_for_start()
    for raw in core.read_namespaced_pod_log("p", "default", follow=True, _preload_content=False):
        if line in raw.decode():
            return


@pytest.mark.parametrize(
    ("script", "phase", "exit_code", "reason"),
    [
        ("exit 0", "Succeeded", 0, "Completed"),
        ("exit 64", "Failed", 64, "Error"),
        ("kill -9 $$", "Failed", 137, "Error"),
    ],
)
def test_pod_ends_with_the_process(
    kube: Any, core: Any, script: str, phase: str, exit_code: int, reason: str
) -> None:
    pod = run_pod(kube, core, script_pod("p", script))
    ended = base_state(pod)["terminated"]
    assert (pod["status"]["phase"], ended["exitCode"], ended["reason"]) == (phase, exit_code, reason)
    assert ended["startedAt"] <= ended["finishedAt"]


def test_pod_goes_through_its_phases_and_conditions(kube: KubeServer, core: client.CoreV1Api) -> None:
    core.create_namespaced_pod("default", script_pod("p", "sleep 0.3"))
    running = kube.wait_for_pod(is_running)
    assert (running["status"]["phase"], running["spec"]["nodeName"]) == ("Running", "node-1")
    assert {c["type"]: c["status"] for c in running["status"]["conditions"]} == {
        "PodScheduled": "True",
        "PodReadyToStartContainers": "True",
        "Initialized": "True",
        "ContainersReady": "True",
        "Ready": "True",
    }
    ended = kube.wait_for_pod(has_ended)
    assert condition(ended, "Ready")["reason"] == "PodCompleted"
    events = core.list_namespaced_event("default", field_selector="involvedObject.name=p").items
    assert [event.reason for event in events] == ["Scheduled", "Pulled", "Created", "Started"]


def test_container_sees_its_environment_and_not_the_host_s(
    kube: KubeServer, core: client.CoreV1Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_HOST", "1")
    kube.add_secret("token", {"key": "s3cret"})
    kube.add_config_map("settings", {"LEVEL": "debug"})
    env = [
        {"name": "PLAIN", "value": "x"},
        {"name": "TWICE", "value": "$(PLAIN)$(PLAIN) $$(PLAIN) $(UNKNOWN)"},
        {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "token", "key": "key"}}},
        {"name": "ABSENT", "valueFrom": {"secretKeyRef": {"name": "no", "key": "key", "optional": True}}},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
        {"name": "GIB", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Gi"}}},
    ]
    base = {
        "env": env,
        "envFrom": [{"configMapRef": {"name": "settings"}}],
        "resources": {"limits": {"memory": "3Gi"}},
    }
    script = 'echo "$TWICE|$SECRET|$ABSENT|$POD|$GIB|$LEVEL|$OF_THE_HOST"'
    run_pod(kube, core, script_pod("p", script, labels={"app": "a"}, base=base))
    assert read_log(core, "p") == "xx $(PLAIN) $(UNKNOWN)|s3cret||a|3|debug|\n"


def test_image_s_entrypoint_runs_when_the_container_has_no_command(
    kube: KubeServer, core: client.CoreV1Api
) -> None:
    kube.add_image("python", [sys.executable, "-c", "import sys; print(sys.argv[1:])"])
    base = {"image": "python", "command": None, "args": ["$(A)", "b"], "env": [{"name": "A", "value": "a"}]}
    run_pod(kube, core, script_pod("p", "", base=base))
    assert read_log(core, "p") == "['a', 'b']\n"
    assert kube.starts[0].argv[-2:] == ["a", "b"]


def test_volumes_appear_at_their_mount_paths_under_an_allowed_root(
    kube: Any, core: Any, tmp_path: Path
) -> None:
    root = tmp_path / "mnt"
    kube.add_config_map("cfg", {"config.json": "{}"})
    kube.add_claim("out", tmp_path / "out")
    volumes = [
        {"name": "c", "configMap": {"name": "cfg"}},
        {"name": "o", "persistentVolumeClaim": {"claimName": "out"}},
        {"name": "e", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    paths = {
        "c": root / "config",
        "o": root / "data" / "output",
        "e": root / "scratch",
        "shm": Path("/dev/shm"),
    }
    mounts = [{"name": name, "mountPath": str(path)} for name, path in paths.items()]
    script = f"cat {root}/config/config.json; echo model > {root}/data/output/m; echo tmp > {root}/scratch/t"
    pod = run_pod(kube, core, script_pod("p", script, volumes=volumes, base={"volumeMounts": mounts}))
    assert (pod["status"]["phase"], read_log(core, "p")) == ("Succeeded", "{}")
    core.delete_namespaced_pod("p", "default")
    assert (tmp_path / "out" / "m").read_text() == "model\n"
    assert [p.name for p in root.iterdir()] == ["data"]  # links to the pod's own volumes went with it


def test_mount_outside_the_allowed_roots_is_refused_and_not_ignored(
    kube: KubeServer, core: client.CoreV1Api
) -> None:
    volumes = [{"name": "e", "emptyDir": {}}]
    base = {"volumeMounts": [{"name": "e", "mountPath": "/nowhere/at/all"}]}
    ended = base_state(run_pod(kube, core, script_pod("p", "true", volumes=volumes, base=base)))["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (128, "StartError")
    assert "the test server cannot mount" in ended["message"]


def test_termination_message_is_the_file_s_last_4096_bytes(kube: KubeServer, core: client.CoreV1Api) -> None:
    script = "head -c 5000 /dev/zero | tr '\\0' a > $TERMINATION_LOG_FILE; printf end >> $TERMINATION_LOG_FILE; exit 1"
    message = base_state(run_pod(kube, core, script_pod("p", script)))["terminated"]["message"]
    assert (len(message), message[-4:]) == (4096, "aend")


def test_termination_message_falls_back_to_the_log_only_when_asked(
    kube: KubeServer, core: client.CoreV1Api
) -> None:
    base = {"terminationMessagePolicy": "FallbackToLogsOnError"}
    asked = run_pod(kube, core, script_pod("asked", "echo why; exit 1", base=base))
    assert base_state(asked)["terminated"]["message"] == "why\n"
    not_asked = run_pod(kube, core, script_pod("not-asked", "echo why; exit 1"))
    assert "message" not in base_state(not_asked)["terminated"]


def test_command_that_does_not_exist_is_a_start_error(kube: KubeServer, core: client.CoreV1Api) -> None:
    pod = script_pod("p", "", base={"command": ["no-such-program"]})
    ended = base_state(run_pod(kube, core, pod))["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (128, "StartError")
    assert 'exec: "no-such-program": executable file not found in $PATH' in ended["message"]


def test_environment_string_over_128_kib_is_a_start_error(kube: KubeServer, core: client.CoreV1Api) -> None:
    pod = script_pod("p", "true", base={"env": [{"name": "CONFIG", "value": "x" * 131_072}]})
    ended = base_state(run_pod(kube, core, pod))["terminated"]
    assert (ended["exitCode"], "argument list too long" in ended["message"]) == (128, True)


def test_init_container_runs_before_base_and_its_failure_fails_the_pod(
    kube: KubeServer, core: client.CoreV1Api
) -> None:
    init = {"name": "prepare", "image": "busybox", "command": ["sh", "-c", "echo first; exit 3"]}
    pod = run_pod(kube, core, script_pod("p", "echo second", initContainers=[init]))
    assert (pod["status"]["phase"], waiting_reason(pod)) == ("Failed", "PodInitializing")
    assert pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 3
    assert read_log(core, "p", container="prepare") == "first\n"


def test_container_is_restarted_when_the_policy_says_so(
    kube: Any, core: client.CoreV1Api, tmp_path: Path
) -> None:
    script = f"echo try; test -e {tmp_path}/again || {{ touch {tmp_path}/again; exit 1; }}"
    pod = run_pod(kube, core, script_pod("p", script, restartPolicy="OnFailure"))
    status = pod["status"]["containerStatuses"][0]
    assert (pod["status"]["phase"], status["restartCount"]) == ("Succeeded", 1)
    assert status["lastState"]["terminated"]["exitCode"] == 1
    assert read_log(core, "p", previous=True) == "try\n"


def test_active_deadline_fails_the_pod(kube: KubeServer, core: client.CoreV1Api) -> None:
    pod = run_pod(kube, core, script_pod("p", "sleep 60", activeDeadlineSeconds=1))
    assert (pod["status"]["phase"], pod["status"]["reason"]) == ("Failed", "DeadlineExceeded")


def test_log_of_a_running_container_can_be_followed_to_its_end(kube: Any, core: client.CoreV1Api) -> None:
    core.create_namespaced_pod(
        "default", script_pod("p", "for i in 1 2 3; do echo $i; sleep 0.1; done; printf end")
    )
    kube.wait_for_pod(is_running)
    assert read_log(core, "p", follow=True) == "1\n2\n3\nend"
    assert has_ended(kube.pod("p"))  # the status is there when the log ends


def test_log_begins_where_tail_and_since_say(kube: KubeServer, core: client.CoreV1Api) -> None:
    run_pod(kube, core, script_pod("p", "echo old; sleep 2.1; echo new"))
    assert read_log(core, "p", tail_lines=1) == "new\n"
    assert read_log(core, "p", since_seconds=2) == "new\n"
    stamp, text = read_log(core, "p", timestamps=True, tail_lines=1).split()
    assert (stamp[-1], text, stamp[:4]) == ("Z", "new", time.strftime("%Y", time.gmtime()))


def test_log_before_the_container_runs_is_a_bad_request(kube: KubeServer, core: client.CoreV1Api) -> None:
    core.create_namespaced_pod("default", script_pod("p", "true", base={"image": "unknown"}))
    kube.wait_for_pod(lambda pod: waiting_reason(pod) == "ErrImagePull")
    with pytest.raises(ApiException, match="is waiting to start: ErrImagePull") as raised:
        read_log(core, "p")
    assert raised.value.status == 400
    with pytest.raises(ApiException, match="container nobody is not valid for pod p"):
        read_log(core, "p", container="nobody")


def test_deletion_gives_the_process_sigterm_and_its_grace(kube: KubeServer, core: client.CoreV1Api) -> None:
    core.create_namespaced_pod("default", script_pod("p", UNTIL_TERMINATED))
    wait_for_line(kube, core, "ready")
    lines: list[str] = []
    following = threading.Thread(target=lambda: lines.append(read_log(core, "p", follow=True)))
    following.start()
    deleted = core.delete_namespaced_pod("p", "default", grace_period_seconds=20)
    assert (
        deleted.metadata.deletion_timestamp is not None,
        deleted.metadata.deletion_grace_period_seconds,
    ) == (True, 20)
    kube.wait_until_gone("p")
    following.join(5)
    assert "saving\n" in lines[0]
    assert [e.reason for e in core.list_namespaced_event("default").items][-1] == "Killing"


def test_deleted_pod_shows_its_exit_code_before_it_goes(kube: KubeServer, core: client.CoreV1Api) -> None:
    core.create_namespaced_pod("default", script_pod("p", UNTIL_TERMINATED))
    wait_for_line(kube, core, "ready")
    version = core.delete_namespaced_pod("p", "default").metadata.resource_version
    kube.wait_until_gone("p")
    stream = watch.Watch().stream(
        core.list_namespaced_pod, "default", resource_version=version, timeout_seconds=1
    )
    codes = [(e["type"], base_state(e["raw_object"]).get("terminated", {}).get("exitCode")) for e in stream]
    assert codes[-2:] == [("MODIFIED", 206), ("DELETED", 206)]


def test_deletion_kills_when_the_grace_is_over(kube: KubeServer, core: client.CoreV1Api) -> None:
    core.create_namespaced_pod(
        "default", script_pod("p", "trap '' TERM; echo ready; while :; do sleep 0.05; done")
    )
    wait_for_line(kube, core, "ready")
    core.delete_namespaced_pod("p", "default", grace_period_seconds=1)
    last = kube.wait_until_gone("p")[-1]
    assert base_state(last)["terminated"]["exitCode"] == 128 + signal.SIGKILL


def test_deletion_without_grace_is_immediate(kube: KubeServer, core: client.CoreV1Api) -> None:
    core.create_namespaced_pod("default", script_pod("p", "sleep 60"))
    kube.wait_for_start()
    core.delete_namespaced_pod("p", "default", grace_period_seconds=0)
    assert kube.pods() == []


def test_pod_of_the_same_name_is_another_pod(kube: KubeServer, core: client.CoreV1Api) -> None:
    first = run_pod(kube, core, script_pod("p", "exit 0"))
    core.delete_namespaced_pod("p", "default")
    second = run_pod(kube, core, script_pod("p", "exit 1"))
    assert first["metadata"]["uid"] != second["metadata"]["uid"]
    assert (len(kube.created_pods), len(kube.starts)) == (2, 2)


def test_scheduling_gate_holds_the_pod_until_it_is_taken_away(
    kube: KubeServer, core: client.CoreV1Api
) -> None:
    core.create_namespaced_pod(
        "default", script_pod("p", "true", schedulingGates=[{"name": "kueue.x-k8s.io/admission"}])
    )
    held = kube.wait_for_pod(lambda pod: bool(condition(pod, "PodScheduled")))
    assert condition(held, "PodScheduled")["reason"] == "SchedulingGated"
    core.patch_namespaced_pod("p", "default", [{"op": "remove", "path": "/spec/schedulingGates"}])
    kube.wait_for_pod(has_ended)


def test_commands_in_containers_are_refused_in_plain_words(kube: KubeServer, core: client.CoreV1Api) -> None:
    core.create_namespaced_pod("default", script_pod("p", "sleep 60"))
    kube.wait_for_start()
    with pytest.raises(ApiException, match="runs no commands in containers") as raised:
        core.connect_get_namespaced_pod_exec("p", "default", command="ls")
    assert raised.value.status == 403
