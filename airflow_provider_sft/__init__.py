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
        "integrations": [
            {
                "integration-name": "SFT",
                "external-doc-url": "https://github.com/foundation-model-stack/fms-hf-tuning",
                "tags": ["ai", "kubernetes"],
            }
        ],
        "operators": [
            {
                "integration-name": "SFT",
                "python-modules": [f"{__name__}.operators.{name}" for name in ("job", "kubernetes", "local")],
            }
        ],
        "triggers": [
            {
                "integration-name": "SFT",
                "python-modules": [f"{__name__}.triggers.{name}" for name in ("job", "kubernetes")],
            }
        ],
        "extra-links": [
            "airflow_provider_sft.links.ReportLink",
            "airflow_provider_sft.links.ModelLink",
            "airflow_provider_sft.links.TrackerLink",
        ],
        "config": {
            "sft": {
                "description": "Defaults of tuning tasks.",
                "options": {
                    "image": {
                        "description": "The trainer image of tasks that name none.",
                        "version_added": "0.1.0",
                        "type": "string",
                        "example": "registry.example.com/sft-trainer:1",
                        "default": "",
                    }
                },
            }
        },
        "task-decorators": [{"name": "sft", "class-name": "airflow_provider_sft.decorators.sft.sft_task"}],
    }
