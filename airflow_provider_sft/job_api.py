"""A worker's calls for one engine's jobs: patient, told by uid, no manifest in any message."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from airflow_provider_sft.api_patience import Patience, api_status, describe_api_error
from airflow_provider_sft.engines.engine import Engine, Manifest
from airflow_provider_sft.engines.registry import ENGINES
from airflow_provider_sft.pod_access import PodAccess
from airflow_provider_sft.pod_outcome import Pod, to_plain
from airflow_provider_sft.try_claim import Deletion

_NOT_FOUND, _FORBIDDEN, _CONFLICT = 404, 403, 409
_DELETE_WITHIN_S = 30.0
_STRICT = {"field_validation": "Strict", "field_manager": "airflow-provider-sft"}


class ServedEngines:
    """The engines that the cluster knows, asked for one by one."""

    def __init__(self, operator: PodAccess) -> None:
        self._operator = operator

    def __contains__(self, name: object) -> bool:
        engine = ENGINES[str(name)]
        if engine.group == "batch":
            return True
        operator = self._operator
        try:
            found = operator.patiently(
                lambda: operator.hook.custom_object_client.get_api_resources(engine.group, engine.version)  # type: ignore[attr-defined]
            )
        except Exception as error:
            if api_status(error) == _NOT_FOUND:
                return False
            if api_status(error) == _FORBIDDEN:  # what cannot be known is tried
                return True
            raise
        return any(resource.name == engine.plural for resource in found.resources)


class JobApi:
    """:param namespace: of all jobs it is asked about"""

    def __init__(self, operator: PodAccess, engine: Engine, namespace: str) -> None:
        self._operator, self._engine, self._namespace = operator, engine, namespace
        self._of_engine = (engine.group, engine.version, namespace, engine.plural)

    def create(self, manifest: Manifest) -> Manifest:
        """The object as it was stored; one of the same name that is there already is taken for it."""
        operator, namespace = self._operator, self._namespace
        if manifest["kind"] == "Service":
            create: Callable[[], Any] = lambda: operator.client.create_namespaced_service(  # noqa: E731
                namespace, manifest, **_STRICT
            )
        else:
            create = lambda: self._custom.create_namespaced_custom_object(  # noqa: E731
                *self._place(manifest), manifest, **_STRICT
            )
        try:
            return {**to_plain(operator.patiently(create)), "kind": manifest["kind"]}
        except Exception as error:
            found = self._find(manifest) if api_status(error) == _CONFLICT else None
            if found is None:
                raise
            return found

    def adopt(self, owned: Manifest, job: Manifest) -> None:
        """Whoever deletes the job deletes both. It does not hold the job's deletion up."""
        owner = {
            "apiVersion": self._engine.api_version,
            "kind": self._engine.kind,
            "name": job["metadata"]["name"],
            "uid": job["metadata"]["uid"],
        }
        body = {"metadata": {"ownerReferences": [owner]}}
        name, client, namespace = owned["metadata"]["name"], self._operator.client, self._namespace
        if owned["kind"] == "ConfigMap":
            client.patch_namespaced_config_map(name, namespace, body)
        elif owned["kind"] == "Service":
            client.patch_namespaced_service(name, namespace, body)
        else:
            self._custom.patch_namespaced_custom_object(*self._place(owned), name, body)

    def delete_owned(self, manifest: Manifest) -> None:
        name, client, namespace = manifest["metadata"]["name"], self._operator.client, self._namespace
        if manifest["kind"] == "ConfigMap":
            client.delete_namespaced_config_map(name, namespace)
        elif manifest["kind"] == "Service":
            client.delete_namespaced_service(name, namespace)
        else:
            self._custom.delete_namespaced_custom_object(*self._place(manifest), name)

    def read(self, name: str) -> Manifest | None:
        try:
            found = self._operator.patiently(
                lambda: self._custom.get_namespaced_custom_object(*self._of_engine, name)
            )
        except Exception as error:
            if api_status(error) == _NOT_FOUND:
                return None
            raise
        return {**found, "kind": self._engine.kind}

    def list_jobs(self, label_selector: str) -> list[Manifest]:
        found = self._operator.patiently(
            lambda: self._custom.list_namespaced_custom_object(
                *self._of_engine, label_selector=label_selector
            )
        )
        return [{**job, "kind": self._engine.kind} for job in found["items"]]

    def list_pods(self, job: Manifest) -> list[Pod]:
        """Empty where Airflow may not see them."""
        selector = self._engine.select_pods(job)
        try:
            found = self._operator.patiently(
                lambda: self._operator.client.list_namespaced_pod(self._namespace, label_selector=selector)
            )
        except Exception as error:  # noqa: BLE001  # the job itself says whether it ended well
            self._operator.log.warning("The job's pods cannot be seen: %s", describe_api_error(error))
            return []
        return [to_plain(pod) for pod in found.items]

    def patch(self, name: str, body: Mapping[str, Any]) -> None:
        self._custom.patch_namespaced_custom_object(*self._of_engine, name, body)

    def delete(self, name: str, uid: str, *, claim: str = "") -> None:
        """In the foreground: it is gone when its pods are. Another job of the same name is left alone.

        :param claim: of this try; a job that a later one has taken over is left alone too
        """
        try:
            Patience(self._operator.log, _DELETE_WITHIN_S).insist(
                lambda: self._delete_if_held(name, uid, claim),
                refresh=self._operator._refresh_cached_properties,  # noqa: SLF001  # the parent's name for it
            )
        except Exception as error:  # noqa: BLE001  # the outcome counts more
            if api_status(error) not in (_NOT_FOUND, _CONFLICT):
                self._operator.log.warning(
                    "%s %s cannot be deleted: %s", self._engine.kind, name, describe_api_error(error)
                )

    def _delete_if_held(self, name: str, uid: str, claim: str) -> None:
        Deletion(uid, claim, self._operator.log, foreground=True).run(
            lambda: self._custom.get_namespaced_custom_object(*self._of_engine, name)["metadata"],
            lambda options: self._custom.delete_namespaced_custom_object(
                *self._of_engine, name, body=options
            ),
        )

    @property
    def _custom(self) -> Any:
        """Custom objects' client, for batch/v1 too: it gives JSON."""
        return self._operator.hook.custom_object_client  # type: ignore[attr-defined]

    def _place(self, manifest: Manifest) -> tuple[str, str, str, str]:
        group, _, version = manifest["apiVersion"].partition("/")
        plural = self._engine.plural if manifest["kind"] == self._engine.kind else _plural(manifest["kind"])
        return group, version, self._namespace, plural

    def _find(self, manifest: Manifest) -> Manifest | None:
        if manifest["kind"] == self._engine.kind:
            return self.read(manifest["metadata"]["name"])
        return manifest


def _plural(kind: str) -> str:
    return f"{kind.lower()}s"
