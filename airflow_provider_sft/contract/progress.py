"""A run while it goes on: one JSON line a logging step on stdout, the same in `progress.json`, and how it reads."""

from __future__ import annotations

import json
from typing import Literal, NotRequired, TypedDict


class Progress(TypedDict):
    """One logging step. `eta_s` and `tokens_per_s` are this attempt's; loss is the mean since the last line."""

    event: Literal["progress"]
    attempt: int
    step: int
    max_steps: int
    epoch: float
    loss: NotRequired[float]
    learning_rate: NotRequired[float]
    grad_norm: NotRequired[float]
    eval_loss: NotRequired[float]
    tokens_per_s: NotRequired[float]
    eta_s: NotRequired[float]


def encode_progress(progress: Progress) -> str:
    return json.dumps(progress, separators=(",", ":"))


def decode_progress(line: str) -> Progress | None:
    """The progress a line of the trainer's stdout carries, or None for any other line."""
    if '"event":"progress"' not in line:
        return None
    try:
        progress = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_progress = isinstance(progress, dict) and {"step", "max_steps"} <= progress.keys()
    return progress if is_progress else None


def describe_progress(progress: Progress) -> str:
    """`step 120/400 (30%) loss 1.234 lr 5.0e-05 812 tokens/s, 4 min 10 s left`"""
    step, max_steps = progress["step"], progress["max_steps"]
    parts = [f"step {step}/{max_steps} ({100 * step // max(max_steps, 1)}%)"]
    if "loss" in progress:
        parts.append(f"loss {progress['loss']:.4g}")
    if "eval_loss" in progress:
        parts.append(f"eval loss {progress['eval_loss']:.4g}")
    if "learning_rate" in progress:
        parts.append(f"lr {progress['learning_rate']:.2g}")
    if "tokens_per_s" in progress:
        parts.append(f"{progress['tokens_per_s']:,.0f} tokens/s")
    line = "  ".join(parts)
    return f"{line}, {describe_duration(progress['eta_s'])} left" if "eta_s" in progress else line


def describe_duration(seconds: float) -> str:
    """`45 s`, `4 min 10 s`, `3 h 05 min`"""
    whole = round(seconds)
    if whole < 60:  # noqa: PLR2004
        return f"{whole} s"
    if whole < 3600:  # noqa: PLR2004
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
