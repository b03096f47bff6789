"""Faults between a client and the API server: error codes, expired tokens, RBAC, cut and slow connections."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from tests.kube.faults import CutConnection, Denied, HttpError, SlowResponse
from tests.kube.manifests import script_pod
from tests.kube.server import KubeServer


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


def test_server_in_its_own_process_ends_with_its_stdin(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    command = [
        sys.executable,
        "-m",
        "tests.kube",
        "--kubeconfig",
        str(kubeconfig),
        "--image",
        "hello=echo hello",
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline().startswith(b"http://127.0.0.1:")
        core = client.CoreV1Api(config.new_client_from_config(str(kubeconfig)))
        core.create_namespaced_pod("default", script_pod("p", "", base={"image": "hello", "command": None}))
        while core.read_namespaced_pod("p", "default").status.phase != "Succeeded":
            time.sleep(0.02)
        process.stdin.close()
        assert process.wait(10) == 0
