"""Where a run may read: SFT_ALLOWED_ROOTS, symlinks resolved. Unset, everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from airflow_provider_sft.contract.errors import AccessDeniedError
from airflow_provider_sft.contract.names import ALLOWED_ROOTS_ENV_VAR


def check_allowed(key: str, path: Path, environ: Mapping[str, str]) -> None:
    """
    :param key: the config key that names `path`
    :raises AccessDeniedError: `path`, or what it links to, lies outside
    """
    roots = [Path(root).resolve() for root in environ.get(ALLOWED_ROOTS_ENV_VAR, "").split(":") if root]
    real = path.resolve()
    if roots and not any(real.is_relative_to(root) for root in roots):
        raise AccessDeniedError(
            f"{path} ({key}) is {real}, outside {ALLOWED_ROOTS_ENV_VAR}={':'.join(map(str, roots))}. Move the data "
            "there, or widen the list."
        )
