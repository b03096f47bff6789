"""What the dataclasses do not say about a key: its section, other defaults, bounds, former names. Data, no logic.

Defaults are fms-hf-tuning's where they change the numbers (an omitted key gives the same tuning), trl's elsewhere.
"""

from __future__ import annotations

from typing import Any

# An object, or the same as JSON text, which is all that a template can give.
_OBJECT: dict[str, Any] = {
    "anyOf": [
        {"type": ["object", "null"]},
        {"type": "string", "pattern": r"^\s*\{", "examples": ['{"a": 1}']},
    ]
}

# Key → what replaces or joins the generated schema.
CHANGES: dict[str, dict[str, Any]] = {
    # Defaults of the peer.
    "learning_rate": {"default": 5e-5, "minimum": 0},
    "gradient_checkpointing": {"default": False},
    "bf16": {"default": False, "description": "Mixed precision in bfloat16, over weights of type `dtype`."},
    "logging_strategy": {"default": "epoch"},
    "logging_steps": {"default": 500, "exclusiveMinimum": 0},
    "save_strategy": {"default": "epoch"},
    "report_to": {
        "default": "none",
        "description": "Integrations of transformers that get the metrics as well; prefer trackers.",
    },
    "max_length": {
        "default": 4096,
        "minimum": 1,
        "description": "The longest row in tokens; longer ones are cut, and counted in the log. Unset: 4096, or the "
        "tokenizer's limit where that is lower. With packing, the length of a pack.",
    },
    "dataset_text_field": {"default": None},
    "lora_alpha": {"default": 32, "minimum": 1, "description": "LoRA's alpha: the adapter counts alpha / r."},
    "lora_dropout": {
        "default": 0.05,
        "minimum": 0,
        "exclusiveMaximum": 1,
        "description": "Dropout before LoRA's layers.",
    },
    "init_lora_weights": {
        "anyOf": [
            {"type": "boolean"},
            {"enum": ["gaussian", "olora", "pissa", "loftq", "orthogonal", "mica"]},
            {"type": "string", "pattern": "^pissa_niter_[0-9]+$", "examples": ["pissa_niter_16"]},
        ],
        "x-value-hints": dict.fromkeys(
            ("eva", "corda", "lora_ga"),
            "It looks at data before the training, which this trainer does not do. Use 'pissa' or 'olora'.",
        ),
    },
    # Bounds.
    "r": {"minimum": 1, "description": "LoRA's rank. vLLM serves 1, 8, 16, 32, 64, 128, 256, 320 and 512."},
    "num_train_epochs": {"exclusiveMinimum": 0},
    "max_steps": {
        "minimum": -1,
        "description": "Steps to train, instead of num_train_epochs; -1: as many as the epochs have. Streaming data "
        "needs it.",
    },
    "per_device_train_batch_size": {"minimum": 1},
    "per_device_eval_batch_size": {"minimum": 1},
    "gradient_accumulation_steps": {"minimum": 1},
    "warmup_steps": {"minimum": 0},
    "weight_decay": {"minimum": 0},
    "adam_beta1": {"minimum": 0, "exclusiveMaximum": 1},
    "adam_beta2": {"minimum": 0, "exclusiveMaximum": 1},
    "adam_epsilon": {"minimum": 0},
    "max_grad_norm": {"minimum": 0},
    "label_smoothing_factor": {"minimum": 0, "exclusiveMaximum": 1},
    "neftune_noise_alpha": {"minimum": 0},
    "eval_strategy": {
        "description": "When to evaluate. Unset: each epoch when validation_data_path is given, else never."
    },
    "eval_steps": {"exclusiveMinimum": 0},
    "save_steps": {"exclusiveMinimum": 0},
    "save_total_limit": {"minimum": 1},
    "eval_delay": {"minimum": 0},
    "dataloader_num_workers": {"minimum": 0},
    "dataloader_prefetch_factor": {"minimum": 1},
    "dataset_num_proc": {"minimum": 1},
    "ddp_timeout": {"minimum": 1},
    "ddp_bucket_cap_mb": {"minimum": 1},
    "torch_empty_cache_steps": {"minimum": 1},
    "eval_accumulation_steps": {"minimum": 1},
    "seed": {"minimum": 0, "maximum": 4294967295},
    "data_seed": {"minimum": 0, "maximum": 4294967295},
    "qalora_group_size": {"minimum": 1},
    # Types and choices that the annotations leave open.
    "output_dir": {
        "type": "string",
        "description": "Where checkpoints, the model, result.json and the report go. One run a directory.",
        "examples": ["/data/output/run-1"],
    },
    "include_num_input_tokens_seen": {"anyOf": [{"type": "boolean"}, {"enum": ["all", "non_padding", "no"]}]},
    "pad_to_multiple_of": {
        "anyOf": [{"type": "integer", "minimum": 1}, {"enum": ["auto"]}, {"type": "null"}]
    },
    "torch_compile_mode": {
        "enum": [
            "default",
            "reduce-overhead",
            "max-autotune",
            "max-autotune-no-cudagraphs",
            None,
        ]
    },
    "include_for_metrics": {"type": "array", "items": {"enum": ["inputs", "loss"]}},
    "fsdp": {
        "type": ["boolean", "string", "array", "null"],
        "x-also": {"True": True, "true": True, "False": False, "false": False},
        "items": {"type": "string"},
        "default": None,
        "description": "Fully sharded data parallel. With more than one GPU process it is on by default (the FSDP "
        "file of the launch); set this only to run it another way.",
    },
    "padding_free": {
        "anyOf": [
            {"type": ["boolean", "null"]},
            {"enum": ["huggingface"]},
            {
                "type": "array",
                "prefixItems": [{"enum": ["huggingface"]}],
                "minItems": 1,
                "maxItems": 1,
                "examples": [["huggingface"]],
            },
        ],
        "default": None,
        "description": "Rows of a batch are laid end to end instead of padded (the peer's [\"huggingface\"], trl's "
        "true). It changes no number. Unset: wherever it is faster.",
    },
    "resume_from_checkpoint": {
        "type": ["boolean", "string", "null"],
        "x-also": {"True": True, "true": True, "False": False, "false": False},
        "description": "Unset or true: from the newest valid checkpoint in output_dir. false: from scratch. A path: "
        "from that checkpoint.",
    },
    "target_modules": {
        "description": "Which modules get LoRA: a list of names, one text of names with commas between them, a regular "
        'expression of whole names, or ["all-linear"]. Unset: PEFT\'s choice for the architecture.',
        "examples": [["q_proj", "v_proj"]],
    },
    "trust_remote_code": {
        "description": "Run Python code that a model or tokenizer ships. Refused unless whoever runs the pod allows "
        "it (SFT_ALLOW_REMOTE_CODE).",
    },
    "lr_scheduler_kwargs": _OBJECT,
    "dataset_kwargs": _OBJECT,
    "gradient_checkpointing_kwargs": _OBJECT,
    "activation_checkpointing_kwargs": _OBJECT,
    "model_init_kwargs": {
        **_OBJECT,
        "description": "Further arguments of the model's from_pretrained.",
    },
    "trackio_static_space_id": {"anyOf": [{"type": "string"}, {"enum": [False, None]}]},
    "lr_scheduler_type": {"description": "How the learning rate moves over the run."},
    "optim": {
        "description": "The optimiser.",
        "x-extra-values": dict.fromkeys(
            (
                "adamw_bnb_8bit",
                "adamw_8bit",
                "ademamix",
                "ademamix_8bit",
                "lion_8bit",
                "lion_32bit",
                "paged_adamw_32bit",
                "paged_adamw_8bit",
                "paged_ademamix_32bit",
                "paged_ademamix_8bit",
                "paged_lion_32bit",
                "paged_lion_8bit",
                "rmsprop_bnb",
                "rmsprop_bnb_8bit",
                "rmsprop_bnb_32bit",
            ),
            "bitsandbytes",
        ),
    },
    "use_liger_kernel": {
        "x-extra": "liger",
        "description": "Use Liger's fused Triton kernels on GPUs.",
    },
    "do_train": {"description": "No effect: a tuning run trains."},
    "do_eval": {"description": "No effect: eval_strategy decides."},
    "do_predict": {"description": "No effect: a tuning run predicts nothing."},
    "local_rank": {"description": "No effect: the launcher gives each process its rank."},
    "use_cache": {
        "description": "Whether the model keeps its keys and values while training, which is rarely of use."
    },
    "pad_token": {"description": "The token that fills up rows. Unset: the tokenizer's, else its eos_token."},
    "eos_token": {"description": "The token that ends a row or a turn. Unset: the tokenizer's."},
    "bias": {"description": "Which bias terms are trained beside LoRA. vLLM takes 'none' alone."},
    "revision": {"description": "The branch, tag or commit of a model from the Hub."},
    "modules_to_save": {
        "description": "Modules trained whole beside LoRA and saved with the adapter. vLLM takes none."
    },
    "hub_token": {
        "description": "Refused: a token in a config ends in logs. Pass it from a Secret as HF_TOKEN.",
    },
    "loss_type": {
        "enum": ["nll", "dft", "chunked_nll"],
        "description": "How the loss is computed: 'nll' is cross-entropy, 'chunked_nll' the same in chunks, 'dft' dynamic fine-tuning.",
    },
    "use_dora": {
        "description": "Weight-decomposed LoRA (DoRA): slower, often better at low rank. vLLM needs a merged export."
    },
    "use_rslora": {"description": "Rank-stabilised LoRA: the adapter counts alpha / sqrt(r)."},
}

# Group → the keys of trl and transformers in it; what is in none goes by prefix, then to "Training".
GROUPS: dict[str, list[str]] = {
    "Model": [
        "model_init_kwargs",
        "trust_remote_code",
        "eos_token",
        "pad_token",
        "use_cache",
        "router_aux_loss_coef",
    ],
    "Data": [
        "chat_template_path",
        "dataset_kwargs",
        "dataset_num_proc",
        "max_length",
        "truncation_mode",
        "shuffle_dataset",
        "packing",
        "packing_strategy",
        "eval_packing",
        "pad_to_multiple_of",
        "completion_only_loss",
        "assistant_only_loss",
        "remove_unused_columns",
        "label_names",
        "length_column_name",
        "train_sampling_strategy",
    ],
    "Optimiser": [
        "learning_rate",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "warmup_steps",
        "weight_decay",
        "max_grad_norm",
        "optim",
        "optim_args",
        "optim_target_modules",
    ],
    "Evaluation": [
        "per_device_eval_batch_size",
        "prediction_loss_only",
        "include_for_metrics",
        "batch_eval_metrics",
        "metric_for_best_model",
        "greater_is_better",
        "load_best_model_at_end",
        "bf16_full_eval",
        "fp16_full_eval",
    ],
    "Checkpoints": [
        "output_dir",
        "save_strategy",
        "save_steps",
        "save_total_limit",
        "save_only_model",
        "save_on_each_node",
        "enable_jit_checkpoint",
        "resume_from_checkpoint",
        "ignore_data_skip",
        "restore_callback_states_from_checkpoint",
    ],
    "Logging": [
        "report_to",
        "run_name",
        "project",
        "disable_tqdm",
        "include_num_input_tokens_seen",
        "skip_memory_metrics",
        "debug",
    ],
    "Speed": [
        "padding_free",
        "gradient_checkpointing",
        "gradient_checkpointing_kwargs",
        "activation_checkpointing",
        "activation_checkpointing_kwargs",
        "activation_offloading",
        "use_liger_kernel",
        "liger_kernel_config",
        "bf16",
        "fp16",
        "tf32",
        "auto_find_batch_size",
    ],
    "Distributed": [
        "fsdp",
        "fsdp_config",
        "deepspeed",
        "accelerator_config",
        "parallelism_config",
        "local_rank",
        "use_cpu",
        "average_tokens_across_devices",
    ],
}
PREFIX_GROUPS = {
    "adam_": "Optimiser",
    "eval_": "Evaluation",
    "logging_": "Logging",
    "log_": "Logging",
    "trackio_": "Logging",
    "hub_": "Hub",
    "push_to_hub": "Hub",
    "dataloader_": "Data",
    "torch_": "Speed",
    "ddp_": "Distributed",
}
GROUP_ORDER = (
    "Model",
    "Data",
    "Training",
    "Tuning technique",
    "LoRA",
    "Optimiser",
    "Evaluation",
    "Checkpoints",
    "Export",
    "Run",
    "Logging",
    "Trackers",
    "Trainer controller",
    "Quantised base",
    "Speed",
    "Distributed",
    "Launch",
    "Hub",
)

# Former name → present name: the value means the same.
MOVED = {
    "max_seq_length": "max_length",
    "torch_dtype": "dtype",
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",
    "flash_attn_implementation": "attn_implementation",
    "overwrite_output_dir": "overwrite",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "no_cuda": "use_cpu",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "torchdynamo": "torch_compile_backend",
    "use_liger": "use_liger_kernel",
}
# Former name → (present name, former value → present value; null: as if the key were not there).
MOVED_VALUES: dict[str, tuple[str, dict[str, Any]]] = {
    "use_flash_attn": ("attn_implementation", {"true": "auto", "false": "sdpa"}),
    "adafactor": ("optim", {"true": "adafactor", "false": None}),
    "group_by_length": ("train_sampling_strategy", {"true": "group_by_length", "false": None}),
}
# What a former name takes where that is not what the present one takes.
MOVED_CHANGES: dict[str, dict[str, Any]] = {
    "warmup_ratio": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
    "max_seq_length": {"type": ["integer", "null"], "minimum": 1},
    "flash_attn_implementation": {"type": ["string", "null"]},
}

# Keys that nothing here reads (no longer in today's releases, or filled in by them): the values that change nothing
# are ignored with a sentence; others are refused with it. None as values: any.
GONE: dict[str, tuple[list[Any] | None, str]] = {
    "task_type": (["CAUSAL_LM", None], "Causal language models alone are tuned; drop it."),
    "peft_type": (["LORA", None], "Use peft_method."),
    "peft_version": (None, "PEFT fills it in."),
    "auto_mapping": ([None], "PEFT fills it in; drop it."),
    "inference_mode": ([False], "A tuning run trains; drop it."),
    "base_model_name_or_path": ([None], "Use model_name_or_path."),
    "runtime_config": ([None], "It belongs to inference; drop it."),
    "arrow_config": ([None], "It routes among adapters that are trained already; drop it."),
    "megatron_config": ([None], "Layers of Megatron-LM are not trained here; drop it."),
    "megatron_core": (["megatron.core", None], "Layers of Megatron-LM are not trained here; drop it."),
    "eva_config": ([None], "EVA looks at data before the training, which this trainer does not do; drop it."),
    "corda_config": (
        [None],
        "CorDA looks at data before the training, which this trainer does not do; drop it.",
    ),
    "lora_ga_config": (
        [None],
        "LoRA-GA looks at gradients before the training, which this trainer does not do; drop it.",
    ),
    "save_safetensors": ([True, None], "Weights are always saved as safetensors; drop it."),
    "use_mps_device": (None, "The device is found by itself."),
    "jit_mode_eval": ([False], "transformers no longer has it; drop it."),
    "use_ipex": (None, "transformers no longer has it."),
    "fp16_opt_level": (None, "It belonged to Apex, which transformers no longer uses."),
    "half_precision_backend": (["auto", "cuda_amp", "cpu_amp"], "Use bf16 or fp16."),
    "fp16_backend": (["auto", "cuda_amp", "cpu_amp"], "Use bf16 or fp16."),
    "tpu_num_cores": (None, "transformers no longer has it."),
    "tpu_metrics_debug": (None, "transformers no longer has it."),
    "past_index": ([-1], "transformers no longer has it; drop it."),
    "fsdp_min_num_params": ([0], 'Use "fsdp_config": {"min_num_params": ...}.'),
    "fsdp_transformer_layer_cls_to_wrap": (
        [None],
        'Use "fsdp_config": {"transformer_layer_cls_to_wrap": [...]}.',
    ),
    "use_legacy_prediction_loop": (None, "transformers no longer has it."),
    "include_inputs_for_metrics": ([False], 'Use "include_for_metrics": ["inputs"].'),
    "push_to_hub_organization": ([None], 'Write "hub_model_id": "organization/name".'),
    "mp_parameters": (None, "It belonged to SageMaker's model parallelism."),
    "ray_scope": (None, "It belonged to hyperparameter search."),
    "include_tokens_per_second": (None, "Tokens per second are always reported."),
    "dataset_batch_size": (None, "The preparation chooses its batches itself."),
    "chars_per_token": (None, "Packing counts tokens now."),
    "num_of_sequences": (None, "Packing counts tokens now."),
}

# What people write for a key → the key; closeness of spelling does not find these.
ALIASES = {
    "model": "model_name_or_path",
    "model_name": "model_name_or_path",
    "model_path": "model_name_or_path",
    "base_model": "model_name_or_path",
    "dataset": "training_data_path",
    "data_path": "training_data_path",
    "train_file": "training_data_path",
    "train_data_path": "training_data_path",
    "eval_data_path": "validation_data_path",
    "validation_file": "validation_data_path",
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "micro_batch_size": "per_device_train_batch_size",
    "grad_accum": "gradient_accumulation_steps",
    "lora_r": "r",
    "rank": "r",
    "lora_rank": "r",
    "alpha": "lora_alpha",
    "lora_target_modules": "target_modules",
    "method": "peft_method",
    "tuning_type": "peft_method",
    "load_in_4bit": "bnb_qlora",
    "load_in_8bit": "bnb_qlora",
    "text_field": "dataset_text_field",
    "text_column_name": "dataset_text_field",
    "sequence_length": "max_length",
    "max_seq_len": "max_length",
    "output": "output_dir",
    "output_path": "output_dir",
    "optimizer": "optim",
    "scheduler": "lr_scheduler_type",
    "precision": "dtype",
    "flash_attn": "attn_implementation",
    "data_config": "data_config_path",
    "multigpu": "accelerate_launch_args",
    "accelerate_args": "accelerate_launch_args",
}
