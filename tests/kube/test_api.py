"""The API as both published Python clients see it: CRUD, selectors, patches, watches, discovery, errors."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException

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


def test_namespace_goes_with_all_that_is_in_it(kube: KubeServer, core: client.CoreV1Api) -> None:
    core.create_namespace({"metadata": {"name": "ns"}})
    core.create_namespaced_config_map("ns", {"metadata": {"name": "c"}})
    core.create_namespaced_pod("ns", script_pod("p", "sleep 60", terminationGracePeriodSeconds=1))
    core.delete_namespace("ns")
    with pytest.raises(ApiException, match="404"):
        core.read_namespaced_config_map("c", "ns")
    assert [n.metadata.name for n in core.list_namespace().items] == ["default", "kube-system"]


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
