"""How each vLLM release takes an adapter: loads right, loads wrong, or rejected, and why. Stdlib only.

Read from adapter_config.json, the tensors' names and shapes, and the base model's config.json where it can be
found; no tensor is loaded. docs/vllm.md says how the rules were measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from airflow_provider_sft.contract import vllm_features, vllm_vocabulary
from airflow_provider_sft.contract.adapter_files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    read_json_object,
    read_tensor_file,
)
from airflow_provider_sft.contract.names import ADDED_TOKENS_FILE, NEW_EMBEDDINGS_FILE
from airflow_provider_sft.contract.outcome import VllmVerdict
from airflow_provider_sft.contract.vllm_adapter import Adapter, Base, Finding
from airflow_provider_sft.contract.vllm_releases import (
    DEFAULT_EXTRA_VOCABULARY,
    DEFAULT_MAX_LORA_RANK,
    MAX_EXTRA_VOCABULARY,
    NO_EXTRA_VOCABULARY,
    RANGES,
    ReleaseRange,
    smallest_max_rank,
    support_of,
)

Outcome = Literal["loads_right", "loads_wrong", "rejected"]

_CHECKS: tuple[Callable[[Adapter], Iterable[Finding]], ...] = (
    vllm_features.check_config,
    vllm_features.check_patterns,
    vllm_features.check_tensors,
    vllm_features.check_rank,
    vllm_features.check_experts,
    vllm_vocabulary.check_embedding_width,
    vllm_vocabulary.check_new_rows,
)


def judge_adapter(directory: Path, *, base: Path | None = None) -> list[VllmVerdict]:
    """The verdict on an adapter, by release range; neighbours that agree are one entry.

    :param base: where the served model's config.json is; by default where adapter_config.json says, if that is
        a directory. Without it a Llama-like base is assumed, and the reason says so.
    :raises ExportError: the directory holds no readable adapter
    """
    return judge(read_adapter(directory, base=base))


def judge(adapter: Adapter) -> list[VllmVerdict]:
    findings = [finding for check in _CHECKS for finding in check(adapter)]
    return _merge_neighbours([_judge_range(adapter, findings, entry) for entry in RANGES])


def judge_model(config: dict[str, Any]) -> list[VllmVerdict]:
    """The verdict on a whole model (merged, or fully tuned), by its config.json."""
    return _merge_neighbours([_judge_model_range(_architecture_of(config), entry) for entry in RANGES])


def describe_verdict(verdict: VllmVerdict) -> str:
    """`vLLM 0.12-0.30: loads right. vLLM applies the trained weights. (--enable-lora --max-lora-rank=32)`"""
    flags = f" ({' '.join(verdict['flags'])})" if verdict["flags"] else ""
    return f"vLLM {verdict['releases']}: {verdict['verdict'].replace('_', ' ')}. {verdict['reason']}{flags}"


def read_adapter(directory: Path, *, base: Path | None = None) -> Adapter:
    """:raises ExportError: no readable adapter there"""
    config = read_json_object(directory / ADAPTER_CONFIG_FILE)
    rows_file = directory / NEW_EMBEDDINGS_FILE
    return Adapter(
        directory=directory,
        config=config,
        tensors=read_tensor_file(directory / ADAPTER_WEIGHTS_FILE).tensors,
        new_embeddings=read_tensor_file(rows_file).tensors if rows_file.exists() else {},
        new_embedding_size=_recorded_size(directory),
        base=read_base(base or Path(str(config.get("base_model_name_or_path") or ""))),
    )


def read_base(directory: Path) -> Base | None:
    """What the verdict needs of the base model, or None where no config.json names its architecture."""
    if not (directory / "config.json").is_file():
        return None
    config = read_json_object(directory / "config.json")
    if not _architecture_of(config):
        return None
    text = config.get("text_config") or config
    return Base(_architecture_of(config), text.get("vocab_size") or config.get("vocab_size"))


def _recorded_size(directory: Path) -> int | None:
    path = directory / ADDED_TOKENS_FILE
    size = read_json_object(path).get("new_embedding_size") if path.exists() else None
    return size if isinstance(size, int) else None


def _architecture_of(config: dict[str, Any]) -> str:
    return str((config.get("architectures") or [""])[0])


class _RangeVerdict(NamedTuple):
    release_range: ReleaseRange
    outcome: Outcome
    reason: str
    flags: list[str]


def _judge_range(adapter: Adapter, findings: list[Finding], entry: ReleaseRange) -> _RangeVerdict:
    found = [finding for finding in findings if finding.since <= entry.start < finding.until]
    found += vllm_features.check_architecture(adapter, entry)
    for outcome in ("rejected", "loads_wrong"):
        reasons = dict.fromkeys(finding.reason for finding in found if finding.outcome == outcome)
        if reasons:
            return _RangeVerdict(entry, outcome, " ".join(reasons), [])
    return _RangeVerdict(entry, "loads_right", _why_right(adapter), list(_serving_flags(adapter, entry)))


def _why_right(adapter: Adapter) -> str:
    if adapter.base is None:
        return "vLLM applies the trained weights, given a base that takes LoRA as Llama does (its config.json was not found)."
    if adapter.new_embeddings:
        return "vLLM applies the trained weights, on a base whose last rows are those of the added tokens."
    return "vLLM applies the trained weights."


def _serving_flags(adapter: Adapter, entry: ReleaseRange) -> Iterator[str]:
    yield "--enable-lora"
    max_rank = smallest_max_rank(adapter.max_rank)
    if max_rank is not None and max_rank > DEFAULT_MAX_LORA_RANK:
        yield f"--max-lora-rank={max_rank}"
    if adapter.num_new_rows:
        yield f"--tokenizer={adapter.directory}"
    if _needs_extra_vocabulary(adapter) and entry.start < NO_EXTRA_VOCABULARY:
        yield f"--lora-extra-vocab-size={MAX_EXTRA_VOCABULARY}"


def _needs_extra_vocabulary(adapter: Adapter) -> bool:
    return adapter.num_new_rows > DEFAULT_EXTRA_VOCABULARY and bool(vllm_vocabulary.lora_sides(adapter))


def _judge_model_range(architecture: str, entry: ReleaseRange) -> _RangeVerdict:
    if support_of(architecture, entry).known:
        return _RangeVerdict(entry, "loads_right", "A whole model: vLLM serves it as it is.", [])
    name = repr(architecture) if architecture else "this architecture"
    reason = (
        f"Not every one of these releases lists {name}; it may still run through vLLM's Transformers backend."
    )
    return _RangeVerdict(entry, "rejected", reason, [])


def _merge_neighbours(verdicts: list[_RangeVerdict]) -> list[VllmVerdict]:
    merged: list[VllmVerdict] = []
    for release_range, outcome, reason, flags in verdicts:
        last = merged[-1] if merged else None
        if last and (last["verdict"], last["reason"], last["flags"]) == (outcome, reason, flags):
            last["releases"] = f"{last['releases'].partition('-')[0]}-{release_range.last}"
        else:
            merged.append(
                {"releases": str(release_range), "verdict": outcome, "reason": reason, "flags": flags}
            )
    return merged
