"""The published clients on the test server."""

import pytest
from kubernetes import client, config

from tests.kube.server import KubeServer


@pytest.fixture
def api_client(kube: KubeServer) -> client.ApiClient:
    """The published client without urllib3's own three retries, which would hide faults."""
    configuration = client.Configuration()
    configuration.retries = False
    return config.new_client_from_config_dict(kube.kubeconfig(), client_configuration=configuration)


@pytest.fixture
def core(api_client: client.ApiClient) -> client.CoreV1Api:
    return client.CoreV1Api(api_client)


@pytest.fixture
def custom(api_client: client.ApiClient) -> client.CustomObjectsApi:
    return client.CustomObjectsApi(api_client)
