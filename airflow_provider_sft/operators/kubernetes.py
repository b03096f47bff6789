"""Tune a model in a pod that asks for GPUs and ephemeral storage."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.secret import Secret
from airflow.providers.common.compat.sdk import conf

from airflow_provider_sft.config_field import PATH_KEYS, ConfigField
from airflow_provider_sft.config_map import CONFIG_FILE, is_too_long, name_after_pod, unnamed_mount
from airflow_provider_sft.contract.codec import dump_config, encode_config
from airflow_provider_sft.contract.names import CONFIG_ENV_VAR, CONFIG_PATH_ENV_VAR, RUN_ID_ENV_VAR
from airflow_provider_sft.contract.outcome import Result
from airflow_provider_sft.failures import LaunchFailure
from airflow_provider_sft.links import ModelLink, ReportLink, TrackerLink
from airflow_provider_sft.pod_claim import CONFIG_ANNOTATION, RUN_ID_ANNOTATION, digest_config
from airflow_provider_sft.pod_request import PodNeeds, lay_under
from airflow_provider_sft.pod_run import PodRun
from airflow_provider_sft.quota import QuotaWait
from airflow_provider_sft.result_report import announcing
from airflow_provider_sft.sizing import choose_sizes
from airflow_provider_sft.task_identity import build_run_id
from airflow_provider_sft.volumes import Mount, parse_volumes, scratch_mount, shm_mount

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context
    from kubernetes.client import models as k8s

_HOUR_S = 3600


class SFTTrainerOperator(ConfigField, PodRun):
    """Tunes a language model in a pod.

    Every parameter of :class:`KubernetesPodOperator` is there and wins over what is set here; these are ours:

    :param config: a dict, JSON text, the path of a JSON file beside the DAG file, or an XComArg of one of these.
        Its values are data: only those of `templated_config_keys` are templated. None leaves it to
        SFT_TRAINER_CONFIG_JSON_PATH in `env_vars` and a volume
    :param gpus: how many, in units of `gpu_resource`; 0 trains on CPU (templated)
    :param gpu_resource: also `nvidia.com/mig-1g.10gb`, `amd.com/gpu` and the like
    :param cpu: `"5/10"` is a request and a limit, `"5"` both; likewise `memory` and `ephemeral_storage`.
        What is not given is derived from the config, and the log says how (all templated)
    :param shm_size: of /dev/shm, which counts against the memory limit
    :param volumes: mount path to `pvc:CLAIM`, `pvc:CLAIM:ro`, `configmap:NAME`, `secret:NAME`, `emptydir` or
        `emptydir:SIZE`; or a list of V1Volume as in the parent (templated)
    :param secrets: environment variable to `SECRET/KEY`, such as `{"HF_TOKEN": "hub/token"}`; or a list of Secret
    :param queue_name: Kueue's queue (templated)
    :param model_parameters: the size of the model, such as `13e9`, where neither its path nor its name tells
    :param templated_config_keys: by default those that hold paths
    :param extra_config_keys: keys that this version does not know and the image does
    :param allow_remote_code: lets Python code that comes with the model run, when the config's trust_remote_code asks
    :param artifacts_url: where the volume is served, such as `https://files.example.com/{path}`: it makes the links to
        report and model (templated)
    :param do_xcom_push: whether the result becomes the task's XCom. There is no side-car
    """

    template_fields: Sequence[str] = (
        *("config", "gpus", "cpu", "memory", "ephemeral_storage", "queue_name", "secrets", "artifacts_url"),
        *KubernetesPodOperator.template_fields,
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **KubernetesPodOperator.template_fields_renderers,
        "config": "json",
    }
    operator_extra_links = (ReportLink(), ModelLink(), TrackerLink())
    found_links: Mapping[str, str] = MappingProxyType({})
    ui_color = "#e8e0f7"
    CONFIG_DIRECTORY = (
        "/etc/sft-config"  # where a config appears that is too long for an environment variable
    )
    config_as_file = False  # whether a short one appears there too

    def __init__(  # noqa: PLR0913  # keyword-only, as the parent
        self,
        *,
        config: Mapping[str, Any] | str | os.PathLike[str] | Any = None,
        gpus: int | str = 1,
        gpu_resource: str = "nvidia.com/gpu",
        cpu: str | None = None,
        memory: str | None = None,
        ephemeral_storage: str | None = None,
        shm_size: str = "8Gi",
        volumes: Mapping[str, str] | list[k8s.V1Volume] | None = None,
        secrets: Mapping[str, str] | list[Secret] | None = None,
        queue_name: str | None = None,
        model_parameters: float | None = None,
        templated_config_keys: Sequence[str] = PATH_KEYS,
        extra_config_keys: Sequence[str] = (),
        allow_remote_code: bool = False,
        artifacts_url: str | None = None,
        do_xcom_push: bool = True,
        deferrable: bool = True,
        poll_interval: float = 5,
        schedule_timeout_seconds: int = 24 * _HOUR_S,
        startup_timeout_seconds: int = _HOUR_S,
        termination_grace_period: int = 300,
        on_finish_action: str = "delete_succeeded_pod",
        log_pod_spec_on_failure: bool = False,
        container_name_log_prefix_enabled: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            volumes=volumes,  # type: ignore[arg-type]  # the short form too: build_pod_request_obj turns it into V1Volumes
            secrets=secrets,  # type: ignore[arg-type]  # likewise
            do_xcom_push=False,  # the parent's flag adds a side-car
            deferrable=deferrable,
            poll_interval=poll_interval,
            schedule_timeout_seconds=schedule_timeout_seconds,
            startup_timeout_seconds=startup_timeout_seconds,
            termination_grace_period=termination_grace_period,
            on_finish_action=on_finish_action,
            log_pod_spec_on_failure=log_pod_spec_on_failure,
            container_name_log_prefix_enabled=container_name_log_prefix_enabled,
            **kwargs,
        )
        self.config = config
        self.gpus = gpus
        self.gpu_resource = gpu_resource
        self.cpu = cpu
        self.memory = memory
        self.ephemeral_storage = ephemeral_storage
        self.shm_size = shm_size
        self.queue_name = queue_name
        self.model_parameters = model_parameters
        self.templated_config_keys = templated_config_keys
        self.extra_config_keys = extra_config_keys
        self.allow_remote_code = allow_remote_code
        self.artifacts_url = artifacts_url
        self.push_result = do_xcom_push

    def execute(self, context: Context) -> Result | None:
        self.name = self._set_name(self.name)
        with announcing(self, context):
            return self.tune(context)

    def trigger_reentry(self, context: Context, event: dict[str, Any]) -> Result | None:
        with announcing(self, context):
            return super().trigger_reentry(context, event)

    def look_for_room_again(self, context: Context, event: dict[str, Any]) -> Result | None:
        """Back from the pause: the namespace's quota was full."""
        since_s, said = event["quota_since_s"], event["quota_said"]
        self._quota_wait = QuotaWait(self.log, self.queue_limit_s, since_s, said)
        self.name = self._set_name(self.name)
        with announcing(self, context):
            return self.tune(context)

    def build_pod_request_obj(self, context: Context | None = None, **options: Any) -> k8s.V1Pod:
        """Builds on a copy: the parent changes the operator's fields, and a second call must give the same pod."""
        builder = copy.copy(self)
        builder.image = self.image or conf.get("sft", "image", fallback=None) or None
        builder.secrets = _parse_secrets(self.secrets)
        builder.volumes = [] if isinstance(self.volumes, Mapping) else self.volumes
        lay_under(builder, self._needs(context))
        pod = super(SFTTrainerOperator, builder).build_pod_request_obj(context, **options)
        name_after_pod(pod)
        return pod

    def long_config(self) -> str | None:
        text = None if self.config is None else dump_config(self.check_config())
        return text if text and self._is_file(text) else None

    def may_have_config_map(self) -> bool:
        # Back from the triggerer, a config that a function made is not there any more.
        return self.config is None or self.long_config() is not None

    def _needs(self, context: Context | None) -> PodNeeds:
        config = {} if self.config is None else self.check_config()
        as_file = self._is_file(dump_config(config))
        return PodNeeds(
            gpus=self.gpus_wanted,
            gpu_resource=self.gpu_resource,
            figures=self._figures(config),
            queue_name=self.queue_name,
            env={
                **self._config_variable(config, as_file=as_file),
                **self.leave_variable,
                **_run_variable(context),
            },
            annotations=_annotations(config, context),
            mounts=[*self._mounts(), *([unnamed_mount(self.CONFIG_DIRECTORY)] if as_file else [])],
        )

    def _is_file(self, config_text: str) -> bool:
        return self.config_as_file or is_too_long(config_text)

    @property
    def gpus_wanted(self) -> int:
        try:
            return int(self.gpus)
        except ValueError:
            raise LaunchFailure(f"gpus is {self.gpus!r}. Give a whole number; 0 trains on CPU.") from None

    def _config_variable(self, config: Mapping[str, Any], *, as_file: bool) -> dict[str, str]:
        if as_file:
            return {CONFIG_PATH_ENV_VAR: f"{self.CONFIG_DIRECTORY}/{CONFIG_FILE}"}
        return {CONFIG_ENV_VAR: encode_config(config)} if config else {}

    def _figures(self, config: Mapping[str, Any]) -> dict[str, str]:
        figures = {"cpu": self.cpu, "memory": self.memory, "ephemeral-storage": self.ephemeral_storage}
        if all(figures.values()):
            return {name: figure for name, figure in figures.items() if figure}
        known = {key: value for key, value in config.items() if key not in self.extra_config_keys}
        sizes = choose_sizes(
            known,
            gpus=self.gpus_wanted,
            model_parameters=self.model_parameters,
            volume_paths=self._lasting_paths(),
        )
        for name in [name for name, figure in figures.items() if not figure]:
            self.log.info("%s is %s: %s.", name, sizes.figures[name], sizes.reasons[name])
        return {name: figure or sizes.figures[name] for name, figure in figures.items()}

    def _lasting_paths(self) -> list[str]:
        """Where what is written outlives the pod."""
        if not isinstance(self.volumes, Mapping):
            return [mount.mount_path for mount in self.volume_mounts]
        return [path for path, source in self.volumes.items() if str(source).startswith("pvc:")]

    def _mounts(self) -> list[Mount]:
        own = parse_volumes(self.volumes) if isinstance(self.volumes, Mapping) else []
        paths = {mount.volume_mount.mount_path for mount in own}
        defaults = [shm_mount(self.shm_size), scratch_mount()]
        return [*own, *(mount for mount in defaults if mount.volume_mount.mount_path not in paths)]


def _run_variable(context: Context | None) -> dict[str, str]:
    return {RUN_ID_ENV_VAR: build_run_id(context)} if context else {}


def _annotations(config: Mapping[str, Any], context: Context | None) -> dict[str, str]:
    if not context:
        return {}
    return {RUN_ID_ANNOTATION: build_run_id(context), CONFIG_ANNOTATION: digest_config(config)}


def _parse_secrets(secrets: Mapping[str, str] | Sequence[Secret]) -> list[Secret]:
    if not isinstance(secrets, Mapping):
        return list(secrets)
    return [_parse_secret(variable, source) for variable, source in secrets.items()]


def _parse_secret(variable: str, source: str) -> Secret:
    name, _, key = source.partition("/")
    if not name or not key:
        raise LaunchFailure(f"secrets[{variable!r}] is {source!r}. Give 'SECRET/KEY', such as 'hub/token'.")
    return Secret("env", variable, name, key)  # type: ignore[no-untyped-call]
