"""The one map of exit codes: what each means, what Airflow does with it, what a person can do.

1-127 are permanent and 128-254 retryable, as in Kubeflow's ExitCode restart policy; 1, 2, 126-128, 134, 137,
139 and 143 are never ours: they belong to Python, argparse, the shell and signals.
"""

from __future__ import annotations

import enum

_FIRST_RETRYABLE = 128


class Action(enum.Enum):
    """What Airflow does with a failed run."""

    FAIL = "fail"  # no retry: it would fail again
    RETRY = "retry"  # the next attempt resumes from the newest valid checkpoint


class ExitCode(enum.IntEnum):
    """How a trainer process can end."""

    SUCCEEDED = 0
    CONFIG = 64
    DATA = 65
    NOT_FOUND = 66
    DIVERGED = 68
    EXPORT = 69
    ACCESS_DENIED = 77
    TRANSIENT = 200
    STORAGE_FULL = 201
    OUT_OF_MEMORY = 202
    INTERNAL = 203
    LOST_RANK = 204
    HANG = 205
    INTERRUPTED = 206
    LOCKED = 207
    ACCELERATORS_MISSING = 208

    @property
    def action(self) -> Action:
        permanent = self < _FIRST_RETRYABLE or self in (ExitCode.STORAGE_FULL, ExitCode.OUT_OF_MEMORY)
        return Action.FAIL if permanent else Action.RETRY

    @property
    def advice(self) -> str:
        return _ADVICE[self]


_ADVICE = {
    ExitCode.SUCCEEDED: "",
    ExitCode.CONFIG: "Correct the config and run the task again.",
    ExitCode.DATA: "Correct the data and run the task again.",
    ExitCode.NOT_FOUND: "Check that the path is mounted, or that the model or data set id is spelled right.",
    ExitCode.DIVERGED: "Lower learning_rate, add warmup_ratio or max_grad_norm, or look at the data around that step.",
    ExitCode.EXPORT: "Set vllm_export to 'merged', or drop lora_post_process_for_vllm.",
    ExitCode.ACCESS_DENIED: "Give the task a token from a Secret, or the pod's user the right to read the path.",
    ExitCode.TRANSIENT: "Nothing to do: the retry resumes.",
    ExitCode.STORAGE_FULL: "Give output_dir more room (larger volume or ephemeral_storage) or lower save_total_limit.",
    ExitCode.OUT_OF_MEMORY: (
        "Lower per_device_train_batch_size or max_seq_length, set gradient_checkpointing, "
        "use more GPUs, or raise the memory limit."
    ),
    ExitCode.INTERNAL: "The retry resumes; if it comes back, report it with the log.",
    ExitCode.LOST_RANK: "Nothing to do: the retry resumes.",
    ExitCode.HANG: "The retry resumes; raise hang_timeout_s if a step really takes that long.",
    ExitCode.INTERRUPTED: "Nothing to do: the retry resumes from the saved checkpoint.",
    ExitCode.LOCKED: "Give each run its own output_dir, or wait for the other run to end.",
    ExitCode.ACCELERATORS_MISSING: (
        "The retry may get another node. If it comes back, check the node's GPU driver and device plugin, the pod's "
        "runtimeClassName and that the image is the one for GPUs; gpus=0 trains on the CPU."
    ),
}


def as_exit_code(value: object) -> ExitCode:
    """`value` where it is a code of the table; anything else is an internal error."""
    if isinstance(value, int) and not isinstance(value, bool) and value in ExitCode.__members__.values():
        return ExitCode(value)
    return ExitCode.INTERNAL
