"""What a run leaves behind: `result.json`, and the same, cut to size, as the container's termination message."""

from __future__ import annotations

import json
import math
from typing import Any, Literal, NotRequired, TypedDict, TypeGuard, get_args

from airflow_provider_sft.contract.names import MAX_TERMINATION_MESSAGE_BYTES
from airflow_provider_sft.contract.plain_text import plain_value

Status = Literal["succeeded", "failed", "interrupted"]
ModelKind = Literal["adapter", "full", "merged"]
Distributed = Literal["none", "ddp", "fsdp1", "fsdp2"]


class VllmVerdict(TypedDict):
    """How a range of vLLM releases takes the exported model."""

    releases: str
    verdict: Literal["loads_right", "loads_wrong", "rejected", "not_measured"]
    reason: str
    flags: list[str]


class Result(TypedDict):
    """The outcome of a run. A key is absent when the run ended before it could be known."""

    contract_version: int
    status: Status
    exit_code: int
    reason: str
    advice: str
    model_path: NotRequired[str]
    model_kind: NotRequired[ModelKind]
    base_model: NotRequired[str]
    steps: NotRequired[int]
    epochs: NotRequired[float]
    train_loss_first: NotRequired[float]
    train_loss_last: NotRequired[float]
    train_loss_best: NotRequired[float]
    eval_loss: NotRequired[float]
    trained_tokens: NotRequired[int]
    trained_token_share: NotRequired[float]
    tokens_per_s: NotRequired[float]
    wall_s: NotRequired[float]
    gpu_s: NotRequired[float]
    distributed: NotRequired[Distributed]
    world_size: NotRequired[int]
    attempt: NotRequired[int]
    resumed_from_step: NotRequired[int]
    last_checkpoint_step: NotRequired[int]
    tracker_url: NotRequired[str]  # of the run on the tracker's server
    vllm_verdict: NotRequired[list[VllmVerdict]]
    notices: NotRequired[list[str]]  # what was asked for and went another way, a sentence each
    config_sha256: NotRequired[str]
    data_sha256: NotRequired[str]
    files: NotRequired[list[str]]


_ALWAYS = {"contract_version": int, "status": str, "exit_code": int, "reason": str, "advice": str}
# What a termination message can do without when it must be cut, in this order. result.json keeps all.
_EXPENDABLE = ("files", "notices", "vllm_verdict", "data_sha256", "config_sha256", "base_model", "advice")


def encode_termination_message(result: Result) -> str:
    """`result` as one line of ASCII JSON of at most 3,000 bytes, so that no XCom side-car is needed.

    Expendable fields go first, then the reason is cut. ASCII, because the kubelet counts bytes.
    """
    kept: dict[str, Any] = {field: plain_value(value) for field, value in result.items() if _is_finite(value)}
    for field in _EXPENDABLE:
        if len(_dump(kept)) <= MAX_TERMINATION_MESSAGE_BYTES:
            return _dump(kept)
        kept.pop(field, None)
    if len(_dump({**kept, "reason": ""})) > MAX_TERMINATION_MESSAGE_BYTES:  # a path of kilobytes
        kept = {field: kept[field] for field in ("contract_version", "status", "exit_code", "reason")}
    while len(_dump(kept)) > MAX_TERMINATION_MESSAGE_BYTES and kept["reason"]:
        kept["reason"] = kept["reason"][: len(kept["reason"]) * 9 // 10]
    return _dump(kept)


def decode_termination_message(message: str | None) -> Result | None:
    """The result a container left, or None for anything that is not one (empty, cut, somebody else's text)."""
    try:
        result = json.loads(message or "")
    except (ValueError, RecursionError):
        return None
    if isinstance(result, dict):
        result.setdefault("reason", "")
        result.setdefault("advice", "")
    return result if is_result(result) else None


def is_result(value: object) -> TypeGuard[Result]:
    """Whether the fields that every result has are there, each of its type. The code itself may be a later version's."""
    return (
        isinstance(value, dict)
        and all(type(value.get(name)) is kind for name, kind in _ALWAYS.items())
        and value["status"] in get_args(Status)
    )


def _is_finite(value: object) -> bool:
    """NaN is no JSON: a field that has no number has no entry."""
    return not isinstance(value, float) or math.isfinite(value)


def _dump(result: dict[str, Any]) -> str:
    return json.dumps(result, ensure_ascii=True, separators=(",", ":"))
