"""Which keys name places on a disk, and whether a run reads or writes there. Data, no logic."""

from __future__ import annotations

# Key → how the run uses the place. `x-path` in the schema.
PATHS: dict[str, str] = {
    "model_name_or_path": "read",
    "tokenizer_name_or_path": "read",
    "training_data_path": "read",
    "validation_data_path": "read",
    "data_config_path": "read",
    "chat_template_path": "read",
    "trainer_controller_config_file": "read",
    "resume_from_checkpoint": "read",
    "deepspeed": "read",
    "fsdp_config": "read",
    "accelerator_config": "read",
    "output_dir": "write",
    "save_model_dir": "write",
    "prepared_data_dir": "write",
    "cache_dir": "write",
    "logging_dir": "write",
    "aim_repo": "write",
    "mlflow_tracking_uri": "write",
    "run_uri_export_path": "write",
}
# The same of `accelerate_launch_args`.
FLAG_PATHS: dict[str, str] = {
    "config_file": "read",
    "deepspeed_config_file": "read",
    "deepspeed_hostfile": "read",
    "mpirun_hostfile": "read",
    "log_dir": "write",
    "offload_optimizer_nvme_path": "write",
    "offload_param_nvme_path": "write",
}
# What else than a path the text of these keys may be: a name on the Hub, or the address of a server.
OTHERWISE: dict[str, str] = {
    "model_name_or_path": "hub",
    "tokenizer_name_or_path": "hub",
    "training_data_path": "hub",
    "validation_data_path": "hub",
    "chat_template_path": "hub",
    "aim_repo": "address",
    "mlflow_tracking_uri": "address",
}
