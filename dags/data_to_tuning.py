"""From data to a verdict: prepare rows, ask the model as it is, tune it, ask again about rows it never saw.

`corpus` is a folder of dialogues, a folder a language, such as the package chatterbot-corpus ships.
"""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_sft import operators
from airflow_provider_sft.examples.held_out import compare, evaluate
from airflow_provider_sft.examples.languages import write_language_rows

RUN_DIR = "{{ params.work_dir }}/{{ run_id }}"

with DAG(
    "data_to_tuning",
    schedule=None,
    params={
        "model": "/data/models/SmolLM2-135M-Instruct",
        "corpus": "/data/corpus",
        "work_dir": "/data/languages",
    },
    doc_md=__doc__,
    tags=["sft"],
):
    rows = task(task_id="prepare")(write_language_rows)(
        corpus_dir="{{ params.corpus }}", output_dir=f"{RUN_DIR}/data"
    )
    before = task(task_id="ask_before")(evaluate)(
        model="{{ params.model }}", data=rows["held_out"], output=f"{RUN_DIR}/before.json"
    )
    # On a cluster, where the workers and the pod see the claim `data` at /data, this line instead of the next:
    # tune = operators.SFTTrainerOperator(image="sft-trainer:1", gpus=1, volumes={"/data": "pvc:data"},
    tune = operators.LocalSFTTrainerOperator(
        task_id="tune",
        config={
            "model_name_or_path": "{{ params.model }}",
            "training_data_path": rows["train"],
            "output_dir": f"{RUN_DIR}/adapter",
            "peft_method": "lora",
            "learning_rate": 1e-3,
            "num_train_epochs": 1,
            "per_device_train_batch_size": 4,
            "logging_strategy": "steps",
            "logging_steps": 1,
        },
    )
    after = task(task_id="ask_after")(evaluate)(
        model="{{ params.model }}",
        adapter=f"{RUN_DIR}/adapter",
        data=rows["held_out"],
        output=f"{RUN_DIR}/after.json",
    )
    tune >> after
    task(task_id="verdict")(compare)(before=before, after=after)
