"""Tune by hand: the trigger form has a field for each config key that people change, and one for all others."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, Param

from airflow_provider_sft.forms import make_form, read_form
from airflow_provider_sft.operators import SFTTrainerOperator

with DAG(
    "manual",
    schedule=None,
    params={
        **make_form(
            {
                "model_name_or_path": "/model/granite-3.1-2b",
                "training_data_path": "/data/train.jsonl",
                "output_dir": "/output/by-hand/{run_id}",
                "peft_method": "lora",
            }
        ),
        "gpus": Param(1, type="integer", minimum=0, title="GPUs", section="Cluster"),
        "queue": Param(None, type=["null", "string"], title="Kueue's queue", section="Cluster"),
    },
    doc_md=__doc__,
    tags=["sft"],
):
    SFTTrainerOperator(
        task_id="tune",
        image="registry.example.com/sft-trainer:1",
        config=read_form,
        gpus="{{ params.gpus }}",
        queue_name="{{ params.queue or '' }}",
        volumes={"/model": "pvc:model:ro", "/data": "pvc:data:ro", "/output": "pvc:output"},
        retries=2,
    )
