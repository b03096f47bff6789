"""Which places a config may name: SFT_ALLOWED_ROOTS, symlinks resolved. Unset, all of them."""

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
        root = real if real.is_dir() else real.parent
        raise AccessDeniedError(
            f"{key} {str(path)!r} is {real}, outside {ALLOWED_ROOTS_ENV_VAR}={':'.join(map(str, roots))}. Add "
            f"{root} to that list, or name a place inside it."
        )
