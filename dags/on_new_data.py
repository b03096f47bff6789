"""Tune whenever new data arrives: whoever writes the data says where it is, in the `extra` of an Asset event.

    Asset(uri="sft://data/tweets") as an outlet, and context["outlet_events"][asset].extra = {"path": "/data/new.jsonl"}

Started by hand, it takes the parameter `data` instead.
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.providers.common.compat.sdk import DAG, Asset

from airflow_provider_sft.assets import event_extra
from airflow_provider_sft.operators import SFTTrainerOperator

NEW_DATA = Asset(uri="sft://data/tweets")

with DAG(
    "on_new_data",
    schedule=[NEW_DATA],
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    params={"data": "/data/tweets.jsonl"},
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
            "training_data_path": event_extra("path", otherwise="params.data"),
            "output_dir": "/output/tweets/{{ run_id }}",
            "dataset_text_field": "output",
            "response_template": "\n### Label:",
            "peft_method": "lora",
        },
        retries=3,
        outlets=[Asset(uri="sft://models/tweets")],
    )
