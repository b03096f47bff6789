"""Environment variables, file names and limits: the vocabulary of the contract."""

from __future__ import annotations

CONTRACT_VERSION = 1

# In: how the config and its surroundings reach the trainer.
CONFIG_ENV_VAR = "SFT_TRAINER_CONFIG_JSON_ENV_VAR"
CONFIG_PATH_ENV_VAR = "SFT_TRAINER_CONFIG_JSON_PATH"
SET_NUM_PROCESSES_ENV_VAR = "SET_NUM_PROCESSES_TO_NUM_GPUS"
TERMINATION_LOG_ENV_VAR = "TERMINATION_LOG_FILE"
FSDP_DEFAULTS_ENV_VAR = "FSDP_DEFAULTS_FILE_PATH"
LOG_LEVEL_ENV_VAR = "LOG_LEVEL"
RUN_ID_ENV_VAR = "SFT_RUN_ID"
ALLOWED_ROOTS_ENV_VAR = "SFT_ALLOWED_ROOTS"
# How many GPUs this pod has requested: fewer visible ones end the run. 0 or unset: any number will do.
EXPECTED_GPUS_ENV_VAR = "SFT_EXPECTED_GPUS"
# "true": code that comes with a model may run (X2). Whoever runs the pod sets it; a config cannot.
ALLOW_REMOTE_CODE_ENV_VAR = "SFT_ALLOW_REMOTE_CODE"

DEFAULT_TERMINATION_LOG = "/dev/termination-log"

# Linux caps one environment string at 131,072 bytes with its name and final NUL; base64 makes 4 bytes of 3.
MAX_ENV_CONFIG_BYTES = 98_277
# The kubelet keeps 4,096 bytes of a termination message; escapes must not push ours over.
MAX_TERMINATION_MESSAGE_BYTES = 3_000

# Out: what a run leaves in output_dir.
RESULT_FILE = "result.json"
PROGRESS_FILE = "progress.json"
ATTEMPTS_FILE = "attempts.jsonl"
TRAINING_LOGS_FILE = "training_logs.jsonl"
REPORT_FILE = "report.html"
COMPLETE_FILE = ".complete"
ADDED_TOKENS_FILE = "added_tokens_info.json"
NEW_EMBEDDINGS_FILE = "new_embeddings.safetensors"

# Whose an output_dir is. A directory that holds it is a run's.
IDENTITY_FILE = ".sft.run.json"
# What a run leaves in output_dir, as patterns; the files of a model are not all among them.
LEFT_BY_A_RUN = (
    ".complete",
    ".sft.[!l]*",  # not the lock, which is held
    ".staging",
    ".export",
    ".superseded",
    "checkpoint-*",
    "train_dataset",
    "validation_dataset",
    RESULT_FILE,
    "result-step-*.json",
    PROGRESS_FILE,
    ATTEMPTS_FILE,
    TRAINING_LOGS_FILE,
    REPORT_FILE,
    "*_tracker.json",
    ADDED_TOKENS_FILE,
    NEW_EMBEDDINGS_FILE,
    "adapter_*",
    "model*.safetensors*",
    "merged",
    "base",
    "vllm",
)
