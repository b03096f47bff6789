"""Watches and log streams as both published Python clients see them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time

import pytest
from kubernetes import client, watch
from kubernetes.client.exceptions import ApiException
from kubernetes_asyncio import client as async_client
from kubernetes_asyncio import config as async_config
from kubernetes_asyncio import watch as async_watch
from urllib3.exceptions import HTTPError, ProtocolError

from tests.kube.faults import CutWatch
from tests.kube.manifests import script_pod
from tests.kube.server import KubeServer


def test_watch_from_a_resource_version_misses_nothing(core: client.CoreV1Api) -> None:
    version = core.list_namespaced_config_map("default").metadata.resource_version
    core.create_namespaced_config_map("default", {"metadata": {"name": "c"}})
    core.patch_namespaced_config_map("c", "default", {"data": {"a": "1"}})
    core.delete_namespaced_config_map("c", "default")
    stream = watch.Watch().stream(
        core.list_namespaced_config_map, "default", resource_version=version, timeout_seconds=1
    )
    assert [event["type"] for event in stream] == ["ADDED", "MODIFIED", "DELETED"]


def test_watch_of_a_custom_resource_sees_its_status_change(
    kube: KubeServer, custom: client.CustomObjectsApi
) -> None:
    kube.serve("kueue.x-k8s.io", "v1beta2", "workloads", "Workload")
    where = ("kueue.x-k8s.io", "v1beta2", "default", "workloads")
    custom.create_namespaced_custom_object(*where, {"metadata": {"name": "w"}, "spec": {"active": True}})
    stream = watch.Watch().stream(custom.list_namespaced_custom_object, *where, timeout_seconds=5)
    assert "status" not in next(stream)["object"]
    status = {"conditions": [{"type": "Admitted", "status": "True"}]}
    custom.patch_namespaced_custom_object_status(*where, "w", {"status": status})
    assert next(stream)["object"]["status"] == status


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
