"""Operators that tune language models.

`SFTTrainerOperator` runs the trainer as a pod, `SFTJobOperator` as a job of the cluster's own engines, queued and on
several nodes, `LocalSFTTrainerOperator` as a process of the worker. Importing one does not import the others: the
Kubernetes client alone takes seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_sft.operators.job import SFTJobOperator
    from airflow_provider_sft.operators.kubernetes import SFTTrainerOperator
    from airflow_provider_sft.operators.local import LocalSFTTrainerOperator

__all__ = ["LocalSFTTrainerOperator", "SFTJobOperator", "SFTTrainerOperator"]

_MODULES = {
    "LocalSFTTrainerOperator": "airflow_provider_sft.operators.local",
    "SFTJobOperator": "airflow_provider_sft.operators.job",
    "SFTTrainerOperator": "airflow_provider_sft.operators.kubernetes",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
