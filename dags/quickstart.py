"""The smallest DAG that tunes a model: one task, on this machine, no cluster."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_sft.operators import LocalSFTTrainerOperator

with DAG(
    "quickstart",
    schedule=None,
    params={
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "data": "/data/train.jsonl",
        "output_dir": "/data/output/quickstart",
    },
    doc_md=__doc__,
    tags=["sft"],
):
    LocalSFTTrainerOperator(
        task_id="tune",
        config={
            "model_name_or_path": "{{ params.model }}",
            "training_data_path": "{{ params.data }}",
            "output_dir": "{{ params.output_dir }}",
            "peft_method": "lora",
            "learning_rate": 1e-3,
            "max_steps": 20,
            "per_device_train_batch_size": 4,
            "logging_strategy": "steps",
            "logging_steps": 1,
        },
    )
