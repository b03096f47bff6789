"""Which config keys are no part of a run's identity, and which may change without making its checkpoints another's.

Data, and one question each. A key that is in neither table shapes the training: a new key is safe by default.
"""

from __future__ import annotations

from airflow_provider_sft.contract.schema import LAUNCH_KEY, config_keys

# How a run is watched, and how it is made to fit: none of it changes what is trained.
_NO_IDENTITY = frozenset(
    {
        "overwrite", "resume_from_checkpoint", "hang_timeout_s", "report", "generate_samples",
        "log_level", "log_level_replica", "log_on_each_node", "logging_dir", "logging_first_step", "logging_steps",
        "logging_strategy", "logging_nan_inf_filter", "disable_tqdm", "skip_memory_metrics", "debug",
        "include_num_input_tokens_seen", "report_to", "run_name", "project",
        "do_train", "do_eval", "do_predict", "local_rank", "use_cache",
        "cache_dir", "prepared_data_dir",
        "gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing",
        "activation_checkpointing_kwargs", "activation_offloading", "padding_free", "auto_find_batch_size",
        "torch_compile", "torch_compile_backend", "torch_compile_mode", "torch_empty_cache_steps",
        "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
        "dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataset_num_proc",
        "ddp_backend", "ddp_broadcast_buffers", "ddp_bucket_cap_mb", "ddp_find_unused_parameters", "ddp_static_graph",
        "ddp_timeout", "eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object",
    }
)  # fmt: skip
_NO_IDENTITY_PREFIXES = (
    "memory_fit",
    "trackio_",
    "hub_",
    "push_to_hub",
    f"{LAUNCH_KEY}.dynamo_",
    f"{LAUNCH_KEY}.rdzv_",
)
_NO_IDENTITY_FLAGS = frozenset(
    {
        "main_process_ip", "main_process_port", "machine_rank", "tee", "quiet", "debug", "log_dir", "role",
        "monitor_interval", "max_restarts", "num_cpu_threads_per_process", "enable_cpu_affinity", "gpu_ids",
        "same_network", "config_file",
    }
)  # fmt: skip
# A checkpoint of before is one of the run as it is now: how often it saves and evaluates, where the model goes.
_RESUMABLE = frozenset(
    {
        "output_dir", "save_model_dir", "save_strategy", "save_steps", "save_total_limit", "save_on_each_node",
        "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "per_device_eval_batch_size", "bf16_full_eval",
        "fp16_full_eval", "prediction_loss_only", "include_for_metrics", "batch_eval_metrics", "enable_jit_checkpoint",
        f"{LAUNCH_KEY}.num_processes", f"{LAUNCH_KEY}.num_machines", f"{LAUNCH_KEY}.multi_gpu",
    }
)  # fmt: skip
# Of the model that is trained already, only the export is another.
EXPORT_KEYS = frozenset({"lora_post_process_for_vllm", "vllm_export"})


def is_no_identity(key: str) -> bool:
    flag = key.removeprefix(f"{LAUNCH_KEY}.")
    return (
        key in _NO_IDENTITY
        or key.startswith(_NO_IDENTITY_PREFIXES)
        or (flag != key and flag in _NO_IDENTITY_FLAGS)
        or config_keys().get(key, {}).get("x-section") == "trackers"
    )


def may_change_before_resuming(key: str) -> bool:
    return key in _RESUMABLE | EXPORT_KEYS
