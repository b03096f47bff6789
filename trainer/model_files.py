"""The base model as files, looked at before anything heavy is imported. Stdlib only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.errors import AccessDeniedError, ConfigError, NotFoundError
from airflow_provider_sft.contract.names import ALLOW_REMOTE_CODE_ENV_VAR
from airflow_provider_sft.contract.wording import show
from trainer.data.roots import check_allowed
from trainer.files import read_json
from trainer.model_content import list_weight_files
from trainer.model_damage import check_model_files, check_tokenizer_files


def check_model(values: Mapping[str, Any], environ: Mapping[str, str]) -> None:
    """Prove that a local model can be loaded; a Hub id is left to the Hub.

    :raises NotFoundError: no such directory, no weights in safetensors in it, or a file of it is damaged
    :raises AccessDeniedError: not readable, or outside SFT_ALLOWED_ROOTS
    :raises ConfigError: it brings code of its own and trust_remote_code is not set, or it is not as auto_gptq has it
    """
    for key in ("model_name_or_path", "tokenizer_name_or_path"):
        if (name := values.get(key)) and is_local(name):
            _check_directory(key, Path(name), environ)
            check_tokenizer_files(Path(name))
    if is_local(name := str(values["model_name_or_path"])):
        options = values.get("model_init_kwargs") or {}
        directory = Path(name, str(options.get("subfolder") or ""))
        _check_weights(directory, options)
        for file in list_weight_files(Path(name), values):
            check_allowed("model_name_or_path", file, environ)
        _check_code(directory, trusted=bool(values.get("trust_remote_code")))
        _check_quantisation(values, directory)


def is_local(name_or_path: str) -> bool:
    """A path, and not a Hub id such as `org/model`."""
    return name_or_path.startswith(("/", "./", "../", "~")) or Path(name_or_path).exists()


def _check_directory(key: str, directory: Path, environ: Mapping[str, str]) -> None:
    check_allowed(key, directory, environ)
    if not directory.exists():
        raise NotFoundError(
            f"{key} {str(directory)!r} does not exist. Mount the volume that holds it, or correct it."
        )
    if not directory.is_dir():
        raise NotFoundError(f"{key} {str(directory)!r} is a file. Name the directory that holds config.json.")
    if not os.access(directory, os.R_OK | os.X_OK):
        raise AccessDeniedError(
            f"{key} {str(directory)!r} cannot be read by user {os.getuid()}. Give it read permission."
        )


def _check_weights(directory: Path, options: Mapping[str, Any]) -> None:
    if not (directory / "config.json").exists():
        raise NotFoundError(
            f"model_name_or_path {str(directory)!r} holds no config.json, so it is not a model. "
            "Name the directory of a whole model; an adapter is merged into its base first."
        )
    if not options.get("gguf_file"):
        check_model_files(directory, variant=options.get("variant"))


def _check_code(directory: Path, *, trusted: bool) -> None:
    if not trusted and (read_json(directory / "config.json") or {}).get("auto_map"):
        raise ConfigError(
            f"The model in {str(directory)!r} brings Python code of its own (auto_map in config.json). "
            f'If you trust it, set "trust_remote_code": true in the config and allow_remote_code=True on the operator '
            f"({ALLOW_REMOTE_CODE_ENV_VAR}=true in the trainer's environment)."
        )


def _check_quantisation(values: Mapping[str, Any], directory: Path) -> None:
    """GPTQ and MXFP4 are the base's own; nothing here would quantise another."""
    stored = (read_json(directory / "config.json") or {}).get("quantization_config") or {}
    if values.get("auto_gptq") and stored.get("quant_method") != "gptq":
        raise ConfigError(
            f"Config key 'auto_gptq' is {show(values['auto_gptq'])} but the model in {str(directory)!r} is not quantised "
            f"with GPTQ. Name one that is, or drop the key."
        )
    if values.get("quantization_method") == "mxfp4" and stored.get("quant_method") != "mxfp4":
        raise ConfigError(
            f"Config key 'quantization_method' is 'mxfp4' but the weights of the model in {str(directory)!r} are not stored "
            "in MXFP4. Name a model that is, or drop the key."
        )
