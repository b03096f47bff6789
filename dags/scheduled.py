"""Tune once a week on a GPU pod. Each run has a directory of its own, a retry resumes, and the model is an Asset.

Whatever is scheduled on the Asset starts with the result at hand: `triggering_asset_events` carries `model_path`,
the losses and the vLLM verdict as the event's `extra`.
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG, Asset

from airflow_provider_sft.operators import SFTTrainerOperator

TUNED_MODEL = Asset(uri="sft://models/tweets")

with DAG(
    "scheduled",
    schedule="@weekly",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["sft"],
):
    SFTTrainerOperator(
        task_id="tune",
        image="registry.example.com/sft-trainer:1",
        gpus=1,
        volumes={"/model": "pvc:model:ro", "/data": "pvc:data:ro", "/output": "pvc:output"},
        config={
            "model_name_or_path": "/model/granite-3.1-2b",
            "training_data_path": "/data/tweets.jsonl",
            "validation_data_path": "/data/tweets-held-out.jsonl",
            "output_dir": "/output/tweets/{{ run_id }}",
            "dataset_text_field": "output",
            "response_template": "\n### Label:",
            "peft_method": "lora",
            "save_strategy": "steps",
            "save_steps": 200,
            "save_total_limit": 2,
            "lora_post_process_for_vllm": True,
        },
        retries=3,
        outlets=[TUNED_MODEL],
    )
