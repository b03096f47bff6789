"""Tune on two nodes through Kueue's queue. A preemption or a lost node costs a restart, not the task."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_sft.operators import SFTJobOperator

with DAG(
    "queued",
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    doc_md=__doc__,
    tags=["sft"],
):
    SFTJobOperator(
        task_id="tune",
        image="registry.example.com/sft-trainer:1",
        num_nodes=2,
        gpus=8,
        queue_name="lq-trainer",
        max_restarts=5,
        volumes={"/model": "pvc:model:ro", "/data": "pvc:data:ro", "/output": "pvc:output-rwx"},
        config={
            "model_name_or_path": "/model/granite-3.1-8b",
            "training_data_path": "/data/tweets.jsonl",
            "output_dir": "/output/tweets/{{ run_id }}",
            "dataset_text_field": "output",
            "response_template": "\n### Label:",
            "save_strategy": "steps",
            "save_steps": 100,
            "save_total_limit": 2,
        },
        retries=2,
    )
