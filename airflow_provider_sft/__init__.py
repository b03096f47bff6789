"""The Airflow provider that tunes language models: what Airflow's plugin registry reads. Stdlib only."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def get_provider_info() -> dict[str, Any]:
    return {
        "package-name": "airflow-provider-sft",
        "name": "SFT",
        "description": "Tune language models from Airflow as you run any other task.",
        "versions": [__version__],
    }
