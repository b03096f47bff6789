"""How each vLLM release takes an adapter: loads right, loads wrong, or rejected, and why. Stdlib only.

Read from adapter_config.json, the tensors' names and shapes, and the base model's config.json where it can be
found; no tensor is loaded. docs/vllm.md says how the rules were measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from airflow_provider_sft.contract import vllm_features, vllm_names, vllm_vocabulary
from airflow_provider_sft.contract.adapter_files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    find_nonfinite,
    read_json_object,
    read_tensor_file,
)
from airflow_provider_sft.contract.base_model import BaseModel, find_base
from airflow_provider_sft.contract.names import ADDED_TOKENS_FILE, NEW_EMBEDDINGS_FILE
from airflow_provider_sft.contract.outcome import VllmVerdict
from airflow_provider_sft.contract.vllm_adapter import Adapter, Finding
from airflow_provider_sft.contract.vllm_releases import (
    DEFAULT_EXTRA_VOCABULARY,
    DEFAULT_MAX_LORA_RANK,
    MAX_EXTRA_VOCABULARY,
    NO_EXTRA_VOCABULARY,
    PATTERNS,
    find_releases,
    follows,
    label_of,
    measured_releases,
    smallest_max_rank,
    support_of,
)

Outcome = Literal["loads_right", "loads_wrong", "rejected"]

_CHECKS: tuple[Callable[[Adapter], Iterable[Finding]], ...] = (
    vllm_features.check_config,
    vllm_names.check_pairs,
    vllm_names.check_base,
    vllm_names.check_numbers,
    vllm_features.check_patterns,
    vllm_features.check_tensors,
    vllm_features.check_rank,
    vllm_features.check_experts,
    vllm_vocabulary.check_embedding_width,
    vllm_vocabulary.check_new_rows,
)


def judge_adapter(
    directory: Path, *, base: Path | None = None, release: str | None = None
) -> list[VllmVerdict]:
    """The verdict on an adapter, release by release; neighbours that agree are one entry.

    :param base: the served model; by default where adapter_config.json says, as a directory or in the Hub's cache.
        Without it a Llama-like base is assumed, and the reason says so.
    :param release: one release; by default all that were measured
    :raises ExportError: the directory holds no readable adapter
    """
    return judge(read_adapter(directory, base=base), release=release)


def judge(adapter: Adapter, *, release: str | None = None) -> list[VllmVerdict]:
    """As `judge_adapter`, for an adapter that was read, or is yet to be written."""
    releases = measured_releases() if release is None else find_releases(release)
    if release is not None and not releases:
        reason = f"vLLM {release} is not among the releases that were measured ({_span()})."
        return [{"releases": release, "verdict": "not_measured", "reason": reason, "flags": []}]
    findings = [finding for check in _CHECKS for finding in check(adapter)]
    return _merge_neighbours([_judge_release(adapter, findings, one) for one in releases])


def _span() -> str:
    releases = measured_releases()
    return f"{label_of(releases[0])} to {label_of(releases[-1])}"


def judge_model(config: dict[str, Any]) -> list[VllmVerdict]:
    """The verdict on a whole model (merged, or fully tuned), by its config.json."""
    architecture = str((config.get("architectures") or [""])[0])
    return _merge_neighbours([_judge_model_release(architecture, one) for one in measured_releases()])


def describe_verdict(verdict: VllmVerdict) -> str:
    """`vLLM 0.12-0.30: loads right. vLLM applies the trained weights. (--enable-lora --max-lora-rank=32)`"""
    flags = f" ({' '.join(verdict['flags'])})" if verdict["flags"] else ""
    return f"vLLM {verdict['releases']}: {verdict['verdict'].replace('_', ' ')}. {verdict['reason']}{flags}"


def read_adapter(directory: Path, *, base: Path | None = None) -> Adapter:
    """:raises ExportError: no readable adapter there"""
    config = read_json_object(directory / ADAPTER_CONFIG_FILE)
    rows_file = directory / NEW_EMBEDDINGS_FILE
    tensors = read_tensor_file(directory / ADAPTER_WEIGHTS_FILE).tensors
    return Adapter(
        directory=directory,
        config=config,
        tensors=tensors,
        new_embeddings=read_tensor_file(rows_file).tensors if rows_file.exists() else {},
        new_embedding_size=_recorded_size(directory),
        base=find_served_base(config, base),
        nonfinite=find_nonfinite(tensors),
    )


def find_served_base(config: Mapping[str, Any], base: Path | None = None) -> BaseModel | None:
    """The adapter's base where its config.json is found and names an architecture: a directory, or in the Hub's cache.

    :raises ExportError: `base` is not a model
    """
    found = find_base(config, base)
    return found if found is not None and found.architecture else None


def _recorded_size(directory: Path) -> int | None:
    path = directory / ADDED_TOKENS_FILE
    size = read_json_object(path).get("new_embedding_size") if path.exists() else None
    return size if isinstance(size, int) else None


class _ReleaseVerdict(NamedTuple):
    release: str
    outcome: Outcome
    reason: str
    flags: list[str]


def _judge_release(adapter: Adapter, findings: list[Finding], release: str) -> _ReleaseVerdict:
    found = [finding for finding in findings if finding.applies_to(release)]
    found += vllm_features.check_fused_experts(adapter, release)
    found += vllm_features.check_architecture(adapter, release)
    for outcome in ("rejected", "loads_wrong"):
        reasons = dict.fromkeys(finding.reason for finding in found if finding.outcome == outcome)
        if reasons:
            return _ReleaseVerdict(release, outcome, " ".join(reasons), [])
    return _ReleaseVerdict(
        release, "loads_right", _why_right(adapter), list(_serving_flags(adapter, release))
    )


def _why_right(adapter: Adapter) -> str:
    if adapter.base is None:
        return "vLLM applies the trained weights, given a base that takes LoRA as Llama does (its config.json was not found)."
    if adapter.new_embeddings:
        return "vLLM applies the trained weights, on a base whose last rows are those of the added tokens."
    return "vLLM applies the trained weights."


def _serving_flags(adapter: Adapter, release: str) -> Iterator[str]:
    yield "--enable-lora"
    if any(name in ("score", "classifier") for name in adapter.config.get("modules_to_save") or ()):
        yield "--runner=pooling"
        yield "--convert=classify"
    counted = adapter.max_named_rank if follows(release, PATTERNS) else adapter.max_rank
    max_rank = smallest_max_rank(counted)
    if max_rank is not None and max_rank > DEFAULT_MAX_LORA_RANK:
        yield f"--max-lora-rank={max_rank}"
    if adapter.num_new_rows:
        yield f"--tokenizer={adapter.directory}"
    if _needs_extra_vocabulary(adapter) and not follows(release, NO_EXTRA_VOCABULARY):
        yield f"--lora-extra-vocab-size={MAX_EXTRA_VOCABULARY}"


def _needs_extra_vocabulary(adapter: Adapter) -> bool:
    return adapter.num_new_rows > DEFAULT_EXTRA_VOCABULARY and bool(vllm_vocabulary.lora_sides(adapter))


def _judge_model_release(architecture: str, release: str) -> _ReleaseVerdict:
    if support_of(architecture, release).known:
        return _ReleaseVerdict(release, "loads_right", "A whole model: vLLM serves it as it is.", [])
    name = repr(architecture) if architecture else "this architecture"
    reason = f"vLLM does not list {name}; it may still run through vLLM's Transformers backend."
    return _ReleaseVerdict(release, "rejected", reason, [])


def _merge_neighbours(verdicts: list[_ReleaseVerdict]) -> list[VllmVerdict]:
    merged: list[VllmVerdict] = []
    for release, outcome, reason, flags in verdicts:
        last, label = merged[-1] if merged else None, label_of(release)
        if last and (last["verdict"], last["reason"], last["flags"]) == (outcome, reason, flags):
            last["releases"] = f"{last['releases'].partition('-')[0]}-{label}"
        else:
            merged.append({"releases": label, "verdict": outcome, "reason": reason, "flags": flags})
    return merged
