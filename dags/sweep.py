"""Tune with several learning rates and ranks, a pod each, and keep the model with the lowest evaluation loss."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_sft.operators import SFTTrainerOperator
from airflow_provider_sft.sweep import choose_best, sweep_configs

CONFIGS = sweep_configs(
    {
        "model_name_or_path": "/model/granite-3.1-2b",
        "training_data_path": "/data/tweets.jsonl",
        "validation_data_path": "/data/tweets-held-out.jsonl",
        "output_dir": "/output/sweep/{{ run_id }}",
        "dataset_text_field": "output",
        "response_template": "\n### Label:",
        "peft_method": "lora",
        "save_strategy": "no",
    },
    learning_rate=[1e-5, 5e-5, 2e-4],
    r=[8, 32],
)

with DAG("sweep", schedule=None, doc_md=__doc__, tags=["sft"]):
    tune = SFTTrainerOperator.partial(
        task_id="tune",
        image="registry.example.com/sft-trainer:1",
        gpus=1,
        volumes={"/model": "pvc:model:ro", "/data": "pvc:data:ro", "/output": "pvc:output"},
        retries=2,
        max_active_tis_per_dagrun=2,
    ).expand(config=CONFIGS)
    # A combination that diverges fails by itself; the best of the others counts.
    task(task_id="best", trigger_rule="all_done")(choose_best)(tune.output, metric="eval_loss")
