"""A run while it goes on: one JSON line a logging step on stdout, the same in `progress.json`, and how it reads."""

from __future__ import annotations

import json
from typing import Any, Literal, NotRequired, TypedDict

_NUMBERS = ("epoch", "loss", "learning_rate", "grad_norm", "eval_loss", "tokens_per_s", "eta_s")
_MAX_COUNT = 1 << 53  # what a database and a page can hold of a whole number
_MAX_NUMBER = 1e300  # none is NaN or infinite


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
    """The progress a line of the trainer's stdout carries, or None for any other line.

    The trainer prints nothing else that begins with a brace (`trainer.streams`): rows and answers cannot pose as it.
    """
    if not line.startswith("{") or '"event":"progress"' not in line:
        return None
    try:
        progress = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(progress, dict) or not _is_progress(progress):
        return None
    return progress  # type: ignore[return-value]


def _is_progress(fields: dict[str, Any]) -> bool:
    """What a newer trainer adds is let through."""
    counts = [fields.get("step"), fields.get("max_steps"), fields.get("attempt", 1)]
    numbers = [fields.get(name, 0.0) for name in _NUMBERS]
    return all(type(count) is int and 0 <= count < _MAX_COUNT for count in counts) and all(
        type(number) in (int, float) and abs(number) < _MAX_NUMBER for number in numbers
    )


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
