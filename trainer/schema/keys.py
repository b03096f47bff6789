# ruff: noqa: RUF009  (key() makes a dataclass field; that is what it is for)
"""Our own config keys and the peer's (fms-hf-tuning), one dataclass a section. Stdlib only.

Each field is a key: its annotation is the type, its default what an omitted key means, its `help` what the docs say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal


def key(default: Any, text: str, **extra: Any) -> Any:
    """A config key.

    :param default: None for a key that has none; a list or dict is copied
    :param extra: `x-…` keywords of the schema, with `_` for `-`, and bounds such as `minimum`
    """
    metadata = {"help": text, "schema": {name.replace("_", "-"): value for name, value in extra.items()}}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelKeys:
    """Model"""

    SECTION: ClassVar = "model"

    model_name_or_path: str = key(
        None,
        "The model to tune: a directory with safetensors weights, or a Hub id.",
        examples=["/data/models/granite-3.1-2b"],
    )
    tokenizer_name_or_path: str | None = key(
        None,
        "Another tokenizer than the model's: a directory or a Hub id. add_special_tokens are added to it too; it gets "
        "no EOS token of ours where it has none.",
    )
    attn_implementation: str = key(
        "auto",
        "How attention is computed: 'auto' takes the best that is installed; else a name that transformers knows, such "
        "as 'sdpa', 'eager', 'flex_attention' or 'flash_attention_2'. A model without sdpa takes eager.",
        x_extra_values={"flash_attention_2": "flash-attn"},
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = key(
        "bfloat16",
        "The type the weights are loaded and trained in. 'auto' takes the checkpoint's own.",
        x_value_hints={"bf16": "Use 'bfloat16'.", "fp16": "Use 'float16'.", "fp32": "Use 'float32'."},
    )
    embedding_size_multiple_of: int | None = key(
        1,
        "When tokens are added, the vocabulary grows to a multiple of this. A padded vocabulary is never shrunk.",
        minimum=1,
    )
    add_special_tokens: list[str] | None = key(
        None, "Tokens to add to the vocabulary, for example the markers of a chat format."
    )
    train_new_tokens: bool = key(
        True,
        "Train the rows of new tokens with a LoRA or aLoRA adapter (PEFT's trainable_token_indices of exactly these rows), "
        "unless target_modules, modules_to_save or trainable_token_indices train them already. false leaves them as they "
        "start: the mean of the known rows.",
    )
    cache_dir: str | None = key(None, "Where downloads from the Hub are kept.")


@dataclass
class DataKeys:
    """Data"""

    SECTION: ClassVar = "data"

    training_data_path: str | None = key(
        None,
        "The rows to train on: a json, jsonl, parquet, arrow, csv, txt or md file, a directory of them, or a Hub id.",
        examples=["/data/input/train.jsonl"],
    )
    validation_data_path: str | None = key(
        None, "The rows to evaluate on, in the same format. Used when eval_strategy is not 'no'."
    )
    data_config_path: str | None = key(
        None,
        "A YAML or JSON file that names several data sets, their weights, splits and handlers; it replaces the data "
        "paths.",
    )
    dataset_text_field: str | None = key(
        None,
        "The column that holds the text to train on.",
    )
    dataset_conversation_field: str | None = key(
        None, "The column that holds a list of chat messages. Unset: 'messages', or 'conversations'."
    )
    dataset_image_field: str | None = key(
        None, "Refused: models are tuned on text only. Of fms-hf-tuning, for vision models."
    )
    response_template: str | None = key(
        None,
        "The text after which the loss counts, as written in the data: everything up to its last occurrence in a row "
        "is context. With instruction_template, what starts an assistant turn.",
        examples=["\n### Label:"],
    )
    instruction_template: str | None = key(
        None, "For chat text without generation markers: what starts a user turn. Needs response_template."
    )
    data_formatter_template: str | None = key(
        None,
        "Makes one text of a row: {{column}} stands for the row's value. Instead of dataset_text_field.",
        examples=["### Input: {{text}}\n\n### Label: {{label}}"],
    )
    chat_template: str | None = key(
        None, "A Jinja chat template that replaces the tokenizer's own; it runs in transformers' sandbox."
    )
    do_dataprocessing_only: bool = key(
        False, "Prepare the data, write it as shards to output_dir and stop: nothing is trained."
    )
    num_train_dataset_shards: int = key(
        1, "Into how many files do_dataprocessing_only writes the training rows.", minimum=1
    )
    num_eval_dataset_shards: int = key(
        1, "Into how many files do_dataprocessing_only writes the evaluation rows.", minimum=1
    )
    prepared_data_dir: str | None = key(
        None,
        "Where prepared data is kept by content, so that the next run with the same data and tokenizer skips the "
        "preparation. Point it at a volume.",
    )


@dataclass
class TuningKeys:
    """Tuning technique"""

    SECTION: ClassVar = "peft"

    peft_method: Literal["none", "lora", "alora", "pt"] | None = key(
        "none",
        "What is trained: 'none' or null all weights, 'lora' a low-rank adapter, 'alora' an activated adapter, 'pt' a "
        "prompt.",
        x_also={"None": "none"},
        x_value_hints={
            "qlora": 'Use \'lora\' with "bnb_qlora": ["nf4"].',
            "full": "Use 'none' for full fine-tuning.",
            "prompt_tuning": "Use 'pt'.",
        },
    )
    alora_invocation_string: str | None = key(
        None, "The text that activates an aLoRA adapter. Every row must hold it."
    )
    prompt_tuning_init: Literal["TEXT", "RANDOM", "SAMPLE_VOCAB"] = key(
        "TEXT", "What the prompt of peft_method 'pt' starts from."
    )
    num_virtual_tokens: int = key(8, "The length of the prompt of peft_method 'pt', in tokens.", minimum=1)
    prompt_tuning_init_text: str | None = key(
        "Classify if the tweet is a complaint or not:",
        "The text that the prompt starts from when prompt_tuning_init is 'TEXT'.",
    )


@dataclass
class QuantisationKeys:
    """Quantised base"""

    SECTION: ClassVar = "quantization"

    bnb_qlora: list[str | bool] | None = key(
        None,
        'Load the base in 4 bits with bitsandbytes (QLoRA): ["nf4"] or ["fp4"]. Needs peft_method \'lora\' and a GPU.',
        x_extra="bitsandbytes",
        prefixItems=[{"enum": ["nf4", "fp4"]}, {"type": "boolean"}],
        minItems=1,
        maxItems=2,
        examples=[["nf4"]],
    )
    auto_gptq: list[str | bool] | None = key(
        None,
        "Train LoRA over a base that is already quantised with GPTQ; the peer's spelling.",
        prefixItems=[{"type": "string"}, {"type": "boolean"}],
        minItems=1,
        maxItems=2,
        examples=[["triton_v2", True]],
    )
    quantization_method: Literal["none", "mxfp4"] | None = key(
        "none", "'mxfp4' loads a base whose weights are stored in MXFP4."
    )
    dequantize: bool = key(True, "With quantization_method 'mxfp4': load the weights dequantised.")


@dataclass
class SpeedKeys:
    """Speed"""

    SECTION: ClassVar = "speed"

    multipack: list[int | str] | int | None = key(
        None, "The peer's batch balancing, for example [16]. Packing without padding does its work here."
    )
    fast_kernels: list[bool | str] | bool | None = key(
        None, "The peer's fused loss, RMS norm and rotary kernels, for example [true, true, true]."
    )
    fused_lora: list[str | bool] | None = key(
        None, 'The peer\'s fused LoRA kernels over a quantised base, for example ["bitsandbytes", true].'
    )
    fast_moe: list[int | bool | str] | int | bool | None = key(
        None, "The peer's ScatterMoE kernels, for example [1]."
    )
    enable_reduce_loss_sum: bool = key(
        False, "Sum the loss over tokens instead of averaging it. Full fine-tuning alone, as in the peer."
    )


@dataclass
class TrackerKeys:
    """Trackers"""

    SECTION: ClassVar = "trackers"

    trackers: (
        list[Literal["file_logger", "tensorboard", "mlflow", "aim", "clearml", "hf_resource_scanner"]] | None
    ) = key(
        ["file_logger"],
        "Where metrics go besides the log. file_logger (training_logs.jsonl) is always on.",
        x_extra_values={
            "tensorboard": "tensorboard",
            "mlflow": "mlflow",
            "aim": "aim",
            "clearml": "clearml",
        },
    )
    experiment: str | None = key(
        "airflow-provider-sft", "The experiment's name, for every tracker that has one."
    )
    run_uri_export_path: str | None = key(
        None, "Where `<tracker>_tracker.json` is written. Unset: output_dir."
    )
    training_logs_filename: str = key("training_logs.jsonl", "The file logger's file in output_dir.")
    logging_dir: str | None = key(None, "Where tensorboard's files go. Unset: `runs` in output_dir.")
    mlflow_experiment: str | None = key(None, "The experiment's name in MLflow. Unset: experiment.")
    mlflow_tracking_uri: str | None = key(
        None,
        "MLflow's server or directory. A password goes into MLFLOW_TRACKING_PASSWORD, never into the URI.",
    )
    aim_experiment: str | None = key(None, "The experiment's name in Aim. Unset: experiment.")
    aim_repo: str | None = key(None, "Aim's repository, a directory or an aim:// address.")
    aim_remote_server_ip: str | None = key(None, "The host of an Aim server.")
    aim_remote_server_port: int | None = key(None, "The port of an Aim server.", minimum=1, maximum=65535)
    aim_url: str | None = key(None, "An Aim server's address, instead of host and port.")
    clearml_project: str | None = key("airflow-provider-sft", "The project's name in ClearML.")
    clearml_task: str | None = key("SFTTrainer", "The task's name in ClearML.")
    scanner_output_filename: str | None = key(
        "scanner_output.json",
        "The peer's resource scanner, which has no counterpart here: ignored, and said so.",
    )
    exp_metadata: str | dict[str, Any] | None = key(
        None, "Keys and values, an object or JSON text, recorded with the run in every tracker."
    )


@dataclass
class ControllerKeys:
    """Trainer controller"""

    SECTION: ClassVar = "controller"

    trainer_controller_config_file: str | None = key(
        None,
        "A YAML file of metrics, rules and operations that stop, save, evaluate or log while training (the peer's "
        "format).",
    )


@dataclass
class ExportKeys:
    """Export"""

    SECTION: ClassVar = "export"

    save_model_dir: str | None = key(None, "Where the tuned model goes. Unset: output_dir.")
    lora_post_process_for_vllm: bool = key(
        False,
        "Make the saved adapter loadable by vLLM: trained rows of added tokens move to new_embeddings.safetensors. "
        "After full fine-tuning there is nothing to do, and the run says so.",
    )
    vllm_export: Literal["adapter", "merged", "both"] = key(
        "adapter",
        "What lora_post_process_for_vllm writes: the adapter, a merged model (needed for new tokens since vLLM 0.12), "
        "or both.",
    )


@dataclass
class RunKeys:
    """Run"""

    SECTION: ClassVar = "run"

    overwrite: bool = key(
        False,
        "Train into output_dir even when it holds another run (other config, data, model or SFT_RUN_ID).",
    )
    hang_timeout_s: float = key(
        3600.0,
        "Seconds without a step, save, evaluation or prepared row after which the run is ended as hung; the retry "
        "resumes.",
        exclusiveMinimum=0,
    )
    report: bool = key(True, "Write report.html: curves, config, data statistics, samples.")
    generate_samples: int = key(
        3, "How many samples are generated before and after tuning, for the report. 0: none.", minimum=0
    )


OUR_KEYS = (
    ModelKeys,
    DataKeys,
    TuningKeys,
    QuantisationKeys,
    SpeedKeys,
    TrackerKeys,
    ControllerKeys,
    ExportKeys,
    RunKeys,
)
