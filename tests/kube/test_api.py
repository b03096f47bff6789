"""The API as both published Python clients see it: CRUD, selectors, patches, watches, discovery, errors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
import time
from typing import Any

import pytest
from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException
from kubernetes_asyncio import client as async_client
from kubernetes_asyncio import config as async_config
from kubernetes_asyncio import watch as async_watch
from urllib3.exceptions import HTTPError, ProtocolError

from tests.kube.faults import CutConnection, CutWatch, Denied, HttpError, SlowResponse
from tests.kube.manifests import has_ended, script_pod
from tests.kube.server import KubeServer

JOBSETS = ("jobset.x-k8s.io", "v1alpha2", "default", "jobsets")


def test_version_and_discovery_list_what_is_served(kube: KubeServer, api_client: client.ApiClient) -> None:
    assert client.VersionApi(api_client).get_code().git_version.startswith("v1.")
    kube.serve("jobset.x-k8s.io", "v1alpha2", "jobsets", "JobSet")
    groups = [group.name for group in client.ApisApi(api_client).get_api_versions().groups]
    assert groups == ["batch", "jobset.x-k8s.io"]
    plurals = [r.name for r in client.CustomObjectsApi(api_client).get_api_resources(*JOBSETS[:2]).resources]
    assert plurals == ["jobsets", "jobsets/status"]


def test_config_map_is_created_read_patched_replaced_and_deleted(core: client.CoreV1Api) -> None:
    created = core.create_namespaced_config_map("default", {"metadata": {"name": "c"}, "data": {"a": "1"}})
    assert created.metadata.uid
    patched = core.patch_namespaced_config_map("c", "default", {"data": {"b": "2"}})
    assert patched.data == {"a": "1", "b": "2"}
    assert int(patched.metadata.resource_version) > int(created.metadata.resource_version)
    patched.data = {"c": "3"}
    assert core.replace_namespaced_config_map("c", "default", patched).data == {"c": "3"}
    core.delete_namespaced_config_map("c", "default")
    with pytest.raises(ApiException, match="404"):
        core.read_namespaced_config_map("c", "default")


def test_replace_with_an_old_resource_version_is_a_conflict(core: client.CoreV1Api) -> None:
    old = core.create_namespaced_config_map("default", {"metadata": {"name": "c"}})
    core.patch_namespaced_config_map("c", "default", {"data": {"b": "2"}})
    with pytest.raises(ApiException, match="the object has been modified") as raised:
        core.replace_namespaced_config_map("c", "default", old)
    assert raised.value.status == 409


def test_create_of_a_taken_name_is_a_conflict_with_a_status(core: client.CoreV1Api) -> None:
    core.create_namespaced_config_map("default", {"metadata": {"name": "c"}})
    with pytest.raises(ApiException) as raised:
        core.create_namespaced_config_map("default", {"metadata": {"name": "c"}})
    status = json.loads(raised.value.body)
    assert (status["kind"], status["code"], status["reason"]) == ("Status", 409, "AlreadyExists")
    assert status["message"] == 'configmaps "c" already exists'


def test_delete_with_another_uid_is_a_conflict(core: client.CoreV1Api) -> None:
    core.create_namespaced_config_map("default", {"metadata": {"name": "c"}})
    options = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid="other"))
    with pytest.raises(ApiException, match="Precondition failed: UID in precondition: other"):
        core.delete_namespaced_config_map("c", "default", body=options)


def test_dependents_go_with_their_owner_and_orphans_stay(core: client.CoreV1Api) -> None:
    def create(name: str, owner: Any = None) -> Any:
        metadata: dict[str, Any] = {"name": name}
        if owner:
            reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": owner.metadata.name}
            metadata["ownerReferences"] = [reference | {"uid": owner.metadata.uid}]
        return core.create_namespaced_config_map("default", {"metadata": metadata})

    create("child", create("owner"))
    create("kept", create("orphaning"))
    core.delete_namespaced_config_map("owner", "default")
    core.delete_namespaced_config_map("orphaning", "default", propagation_policy="Orphan")
    left = {
        c.metadata.name: c.metadata.owner_references for c in core.list_namespaced_config_map("default").items
    }
    assert left == {"kept": None}


def test_foreground_deletion_waits_for_a_pod_that_blocks_it(kube: KubeServer, core: client.CoreV1Api) -> None:
    owner = core.create_namespaced_config_map("default", {"metadata": {"name": "owner"}})
    pod = script_pod("child", "trap 'sleep 0.2; exit 0' TERM; while :; do sleep 0.05; done")
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.metadata.uid}
    pod["metadata"]["ownerReferences"] = [reference | {"blockOwnerDeletion": True}]
    core.create_namespaced_pod("default", pod)
    kube.wait_for_pod(lambda p: p["status"]["phase"] == "Running")
    time.sleep(0.1)  # until the shell has set its trap
    core.delete_namespaced_config_map("owner", "default", propagation_policy="Foreground")
    assert core.read_namespaced_config_map("owner", "default").metadata.finalizers == ["foregroundDeletion"]
    kube.wait_until_gone("child")
    assert [c.metadata.name for c in core.list_namespaced_config_map("default").items] == []


def test_finalizer_holds_a_deleted_object_until_it_is_removed(
    custom: client.CustomObjectsApi, kube: KubeServer
) -> None:
    kube.serve("jobset.x-k8s.io", "v1alpha2", "jobsets", "JobSet")
    body = {"metadata": {"name": "j", "finalizers": ["example.com/hold"]}}
    custom.create_namespaced_custom_object(*JOBSETS, body)
    custom.delete_namespaced_custom_object(*JOBSETS, "j")
    held = custom.get_namespaced_custom_object(*JOBSETS, "j")
    assert held["metadata"]["deletionTimestamp"]
    custom.patch_namespaced_custom_object(*JOBSETS, "j", {"metadata": {"finalizers": None}})
    assert custom.list_namespaced_custom_object(*JOBSETS)["items"] == []


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("app=a", ["p1"]),
        ("app!=a", ["p2", "p3"]),
        ("app in (a,b)", ["p1", "p2"]),
        ("app notin (a,b),!late", ["p3"]),
        ("app", ["p1", "p2"]),
        ("", ["p1", "p2", "p3"]),
    ],
)
def test_list_by_labels_finds(core: client.CoreV1Api, selector: str, names: list[str]) -> None:
    for name, labels in {"p1": {"app": "a"}, "p2": {"app": "b"}, "p3": {}}.items():
        core.create_namespaced_config_map("default", {"metadata": {"name": name, "labels": labels}})
    found = core.list_namespaced_config_map("default", label_selector=selector).items
    assert [item.metadata.name for item in found] == names


def test_list_by_fields_finds_pods_by_phase_and_refuses_other_fields(
    kube: KubeServer, core: client.CoreV1Api
) -> None:
    core.create_namespaced_pod("default", script_pod("good", "exit 0"))
    core.create_namespaced_pod("default", script_pod("bad", "exit 1"))
    for name in ("good", "bad"):
        kube.wait_for_pod(has_ended, name=name)
    failed = core.list_namespaced_pod("default", field_selector="status.phase=Failed").items
    assert [pod.metadata.name for pod in failed] == ["bad"]
    with pytest.raises(ApiException, match="field label not supported: spec.foo"):
        core.list_namespaced_pod("default", field_selector="spec.foo=1")


def test_list_in_pages_gives_each_object_once(core: client.CoreV1Api) -> None:
    for index in range(5):
        core.create_namespaced_config_map("default", {"metadata": {"name": f"c{index}"}})
    names: list[str] = []
    token: str | None = ""
    while token is not None:
        page = core.list_namespaced_config_map("default", limit=2, _continue=token or None)
        names += [item.metadata.name for item in page.items]
        token = page.metadata._continue
    assert names == ["c0", "c1", "c2", "c3", "c4"]


def test_custom_object_status_changes_only_through_its_subresource(
    kube: KubeServer, custom: client.CustomObjectsApi
) -> None:
    kube.serve("jobset.x-k8s.io", "v1alpha2", "jobsets", "JobSet")
    body = {"metadata": {"name": "j"}, "spec": {"suspend": True}, "status": {"lost": 1}}
    created = custom.create_namespaced_custom_object(*JOBSETS, body, field_validation="Strict")
    assert "status" not in created
    status = {"status": {"conditions": [{"type": "Suspended", "status": "True"}]}}
    custom.patch_namespaced_custom_object_status(*JOBSETS, "j", status)
    custom.patch_namespaced_custom_object(*JOBSETS, "j", {"spec": {"suspend": False}, "status": {"lost": 2}})
    seen = custom.get_namespaced_custom_object(*JOBSETS, "j")
    assert (seen["spec"], seen["status"]) == ({"suspend": False}, status["status"])
    assert seen["metadata"]["generation"] == 2


def test_custom_object_of_a_missing_engine_is_404(custom: client.CustomObjectsApi) -> None:
    with pytest.raises(ApiException, match="404 page not found") as raised:
        custom.list_namespaced_custom_object(*JOBSETS)
    assert raised.value.status == 404


def test_custom_object_refuses_a_strategic_merge_patch(
    kube: KubeServer, custom: client.CustomObjectsApi
) -> None:
    kube.serve("jobset.x-k8s.io", "v1alpha2", "jobsets", "JobSet")
    custom.create_namespaced_custom_object(*JOBSETS, {"metadata": {"name": "j"}})
    custom.api_client.set_default_header("Content-Type", "application/strategic-merge-patch+json")
    with pytest.raises(ApiException) as raised:
        custom.api_client.call_api(
            "/apis/jobset.x-k8s.io/v1alpha2/namespaces/default/jobsets/j",
            "PATCH",
            body={},
            auth_settings=["BearerToken"],
        )
    assert raised.value.status == 415


def test_pod_with_unknown_field_is_refused_when_validation_is_strict(core: client.CoreV1Api) -> None:
    pod = script_pod("p", "true", base={"enviroment": []})
    with pytest.raises(ApiException, match=r'unknown field \\"spec.containers\[0\].enviroment\\"'):
        core.create_namespaced_pod("default", pod, field_validation="Strict")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"metadata": {"name": "Upper"}}, "a lowercase RFC 1123 subdomain"),
        ({"metadata": {"name": "p", "labels": {"a": "b c"}}}, "a valid label must be"),
        ({"spec": {"containers": []}}, "spec.containers: Required value"),
    ],
)
def test_invalid_pod_is_refused_with_422(
    core: client.CoreV1Api, change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ApiException, match=sentence) as raised:
        core.create_namespaced_pod("default", script_pod("p", "true") | change)
    assert raised.value.status == 422


@pytest.mark.parametrize(
    ("base", "sentence"),
    [
        (
            {"resources": {"limits": {"memory": "1Gi"}, "requests": {"memory": "2Gi"}}},
            "less than or equal to memory limit",
        ),
        ({"resources": {"requests": {"nvidia.com/gpu": "2"}}}, "must equal the request of nvidia.com/gpu"),
        ({"resources": {"limits": {"memory": "1 GB"}}}, "quantities must match the regular expression"),
        ({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}, r"volumeMounts\[0\].name: Not found"),
    ],
)
def test_pod_with_impossible_container_is_refused(
    core: client.CoreV1Api, base: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ApiException, match=sentence):
        core.create_namespaced_pod("default", script_pod("p", "true", base=base))


def test_pod_spec_cannot_be_changed_afterwards(core: client.CoreV1Api) -> None:
    core.create_namespaced_pod("default", script_pod("p", "true"))
    with pytest.raises(ApiException, match="pod updates may not change fields"):
        core.patch_namespaced_pod("p", "default", {"spec": {"restartPolicy": "Always"}})


def test_pod_in_an_unknown_namespace_or_service_account_is_refused(core: client.CoreV1Api) -> None:
    with pytest.raises(ApiException, match=r'namespaces \\"nowhere\\" not found'):
        core.create_namespaced_pod("nowhere", script_pod("p", "true"))
    with pytest.raises(ApiException, match=r'serviceaccount \\"nobody\\" not found'):
        core.create_namespaced_pod("default", script_pod("p", "true", serviceAccountName="nobody"))


def test_watch_from_a_resource_version_misses_nothing(core: client.CoreV1Api) -> None:
    version = core.list_namespaced_config_map("default").metadata.resource_version
    core.create_namespaced_config_map("default", {"metadata": {"name": "c"}})
    core.patch_namespaced_config_map("c", "default", {"data": {"a": "1"}})
    core.delete_namespaced_config_map("c", "default")
    stream = watch.Watch().stream(
        core.list_namespaced_config_map, "default", resource_version=version, timeout_seconds=1
    )
    assert [event["type"] for event in stream] == ["ADDED", "MODIFIED", "DELETED"]


def test_watch_with_a_selector_sees_an_object_leave_it(core: client.CoreV1Api) -> None:
    core.create_namespaced_config_map("default", {"metadata": {"name": "c", "labels": {"in": "yes"}}})
    stream = watch.Watch().stream(
        core.list_namespaced_config_map, "default", label_selector="in", timeout_seconds=5
    )
    types = [next(stream)["type"]]
    core.patch_namespaced_config_map("c", "default", {"metadata": {"labels": {"in": None}}})
    types.append(next(stream)["type"])
    assert types == ["ADDED", "DELETED"]


def test_watch_of_an_expired_version_is_gone_and_bookmarks_come_when_asked(
    kube: KubeServer, core: client.CoreV1Api
) -> None:
    version = core.list_namespaced_config_map("default").metadata.resource_version
    kube.expire_history()
    with pytest.raises(ApiException, match="410"):
        list(watch.Watch().stream(core.list_namespaced_config_map, "default", resource_version=version))
    stream = watch.Watch().stream(
        core.list_namespaced_config_map, "default", allow_watch_bookmarks=True, timeout_seconds=1
    )
    assert "BOOKMARK" in [event["type"] for event in stream]


def test_watch_cut_abruptly_breaks_the_connection(kube: KubeServer, core: client.CoreV1Api) -> None:
    core.create_namespaced_config_map("default", {"metadata": {"name": "c"}})
    kube.inject(CutWatch(path="configmaps", after_events=0))
    with pytest.raises(ProtocolError):
        next(watch.Watch().stream(core.list_namespaced_config_map, "default", timeout_seconds=1))


def test_watch_cut_quietly_is_taken_up_again_by_the_client(kube: KubeServer, core: client.CoreV1Api) -> None:
    for name in "abc":
        core.create_namespaced_config_map("default", {"metadata": {"name": name}})
    kube.inject(CutWatch(path="configmaps", after_events=2, abrupt=False))
    names = []
    for event in watch.Watch().stream(core.list_namespaced_config_map, "default"):
        names.append(event["object"].metadata.name)
        if "c" in names:
            break
        core.patch_namespaced_config_map("c", "default", {"data": {"time": str(time.time())}})
    assert names[:2] == ["a", "b"]
    assert sum(request.verb == "watch" for request in kube.requests) == 2


def test_async_client_creates_watches_follows_and_deletes(kube: KubeServer) -> None:
    async def run() -> tuple[list[str], bytes]:
        configuration = async_client.Configuration()
        await async_config.load_kube_config_from_dict(kube.kubeconfig(), client_configuration=configuration)
        async with async_client.ApiClient(configuration) as connection:
            core = async_client.CoreV1Api(connection)
            version = (await core.list_namespaced_pod("default")).metadata.resource_version
            await core.create_namespaced_pod("default", script_pod("p", "echo one; sleep 0.2; echo two"))
            phases = []
            stream = async_watch.Watch().stream(
                core.list_namespaced_pod, "default", resource_version=version, timeout_seconds=10
            )
            async for event in stream:
                phases.append(event["object"].status.phase)
                if phases[-1] == "Succeeded":
                    break
            reply = await core.read_namespaced_pod_log("p", "default", follow=True, _preload_content=False)
            log = await reply.read()
            await core.delete_namespaced_pod("p", "default")
            assert (await core.list_namespaced_pod("default")).items == []
            return phases, log

    phases, log = asyncio.run(run())
    assert list(dict.fromkeys(phases)) == ["Pending", "Running", "Succeeded"]
    assert log == b"one\ntwo\n"


@pytest.mark.parametrize("status", [401, 429, 500, 503])
def test_http_error_strikes_as_often_as_asked(kube: KubeServer, core: client.CoreV1Api, status: int) -> None:
    kube.inject(HttpError(status=status, path="/pods", method="GET", times=2, retry_after_s=1))
    for _ in range(2):
        with pytest.raises(ApiException) as raised:
            core.list_namespaced_pod("default")
        assert (raised.value.status, raised.value.headers["Retry-After"]) == (status, "1")
    core.list_namespaced_pod("default")
    assert [request.status for request in kube.requests] == [status, status, 200]


def test_expired_token_is_refused_and_the_kubeconfig_has_the_new_one(
    kube: KubeServer, core: client.CoreV1Api, tmp_path: Any
) -> None:
    kube.expire_token()
    with pytest.raises(ApiException, match="Unauthorized") as raised:
        core.list_namespaced_pod("default")
    assert raised.value.status == 401
    fresh = config.new_client_from_config(str(tmp_path / "kubeconfig"))
    assert client.CoreV1Api(fresh).list_namespaced_pod("default").items == []


def test_denied_verb_is_forbidden_in_the_words_of_rbac(kube: KubeServer, core: client.CoreV1Api) -> None:
    kube.inject(Denied(verb="list|watch", resource="events"))
    with pytest.raises(ApiException, match='cannot list resource \\\\"events\\\\" in API group') as raised:
        core.list_namespaced_event("default")
    assert raised.value.status == 403
    core.list_namespaced_pod("default")


@pytest.mark.parametrize(("executed", "created"), [(True, 1), (False, 0)])
def test_cut_connection_leaves_what_it_says(
    kube: KubeServer, api_client: Any, executed: bool, created: int
) -> None:
    core = client.CoreV1Api(api_client)
    kube.inject(CutConnection(path="/pods", method="POST", executed=executed))
    with pytest.raises(Exception, match="Connection aborted|Remote end closed|ConnectionReset"):
        core.create_namespaced_pod("default", script_pod("p", "true"))
    assert len(kube.created_pods) == created


def test_response_cut_in_the_middle_is_an_incomplete_read(kube: KubeServer, core: client.CoreV1Api) -> None:
    kube.inject(CutConnection(path="/pods", after_bytes=20))
    with pytest.raises(Exception, match="IncompleteRead|Connection broken"):
        core.list_namespaced_pod("default")


def test_slow_response_comes_late(kube: KubeServer, core: client.CoreV1Api) -> None:
    kube.inject(SlowResponse(seconds=0.3))
    started = time.monotonic()
    core.list_namespaced_pod("default")
    assert time.monotonic() - started >= 0.3


def test_server_stops_with_a_watch_open_and_a_pod_running(kube: KubeServer, core: client.CoreV1Api) -> None:
    def read_until_cut() -> None:
        with contextlib.suppress(HTTPError):
            list(watch.Watch().stream(core.list_namespaced_pod, "default"))

    core.create_namespaced_pod("default", script_pod("p", "sleep 60"))
    pid = kube.wait_for_start().pid
    watching = threading.Thread(target=read_until_cut)
    watching.start()
    kube.stop()
    watching.join(5)
    assert not watching.is_alive()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
