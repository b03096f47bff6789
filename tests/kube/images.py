"""Pulling images: names that are wrong, registries that refuse, and the kubelet's back-off, in containerd's words."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tests.kube.container import Container
from tests.kube.faults import ImagePullError
from tests.kube.podspec import is_image_name

if TYPE_CHECKING:
    from tests.kube.pod_worker import PodWorker

_REFUSALS = {
    401: (
        "rpc error: code = Unknown desc = failed to pull and unpack image {ref}: failed to resolve reference {ref}: "
        "failed to authorize: failed to fetch anonymous token: unexpected status from GET request to "
        "https://auth.docker.io/token: 401 Unauthorized"
    ),
    404: (
        "rpc error: code = NotFound desc = failed to pull and unpack image {ref}: failed to resolve reference {ref}: "
        "{name}: not found"
    ),
    429: (
        "rpc error: code = Unknown desc = failed to pull and unpack image {ref}: failed to copy: httpReadSeeker: "
        "failed open: unexpected status code 429 Too Many Requests - Server message: toomanyrequests: "
        "You have reached your pull rate limit."
    ),
    503: (
        "rpc error: code = Unknown desc = failed to pull and unpack image {ref}: failed to resolve reference {ref}: "
        "unexpected status from HEAD request to https://registry-1.docker.io/v2/: 503 Service Unavailable"
    ),
}


async def await_image(worker: PodWorker, container: Container) -> None:
    """Return when the container's image is there. For a wrong name or a missing image that is never."""
    image = str(container.spec["image"])
    if not is_image_name(image):
        message = f'Failed to apply default image tag "{image}": couldn\'t parse image name "{image}": invalid reference format'
        await _wait_for_ever(worker, container, "InvalidImageName", message)
    fault = worker.kubelet.faults.take(ImagePullError, lambda f: f.concerns(worker.name))
    known = image in worker.kubelet.images
    if container.spec.get("imagePullPolicy") == "Never" and not known:
        message = f'Container image "{image}" is not present with pull policy of Never'
        await _wait_for_ever(worker, container, "ErrImageNeverPull", message)
    until = time.monotonic() + fault.for_s if fault else 0
    while not known or time.monotonic() < until:
        await _fail_pull(worker, container, fault.status if fault else 404)
    worker.event("Pulled", f'Successfully pulled image "{image}"', container=container.name)


async def _wait_for_ever(worker: PodWorker, container: Container, reason: str, message: str) -> None:
    container.wait_for(reason, message)
    worker.publish()
    worker.event("Failed", f"Error: {reason}", container=container.name)
    worker.event("InspectFailed", message, container=container.name)
    await asyncio.Event().wait()


async def _fail_pull(worker: PodWorker, container: Container, status: int) -> None:
    """One round of ErrImagePull and ImagePullBackOff, each shown for half of the kubelet's retry time."""
    image = str(container.spec["image"])
    name = image if "/" in image else f"docker.io/library/{image}"
    refusal = _REFUSALS[status].format(ref=f'"{name}"', name=name)
    about = {"container": container.name}
    worker.event("Pulling", f'Pulling image "{image}"', **about)
    worker.event("Failed", f'Failed to pull image "{image}": {refusal}', **about)
    worker.event("Failed", "Error: ErrImagePull", **about)
    container.wait_for("ErrImagePull", refusal)
    worker.publish()
    await asyncio.sleep(worker.kubelet.pull_s / 2)
    worker.event("BackOff", f'Back-off pulling image "{image}"', **about)
    container.wait_for("ImagePullBackOff", f'Back-off pulling image "{image}": ErrImagePull: {refusal}')
    worker.publish()
    await asyncio.sleep(worker.kubelet.pull_s / 2)
