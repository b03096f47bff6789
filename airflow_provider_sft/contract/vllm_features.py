"""Which features of a LoRA adapter vLLM's releases refuse, which they ignore, and which they apply."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from airflow_provider_sft.contract.adapter_layout import (
    Role,
    embedding_side,
    parse_tensor_name,
    plain_scaling,
    scaling_of,
)
from airflow_provider_sft.contract.vllm_adapter import Adapter, Finding, is_fused_experts
from airflow_provider_sft.contract.vllm_releases import (
    CLASSIFIER_HEADS,
    EXPERT_LORA,
    LARGE_VOCABULARY,
    MAX_LORA_RANKS,
    NO_EXTRA_VOCABULARY,
    PATTERNS,
    follows,
    measured_releases,
    support_of,
)

# These set the adapter's first weights and nothing else; any other changes the base weights under the adapter.
_PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
# Variants that change what is computed and that no release of vLLM reads.
_UNIMPLEMENTED = ("layer_replication", "use_bdlora", "use_qalora")
_UNREAD_VARIANTS = ("kasa_config", "arrow_config", "monteclora_config")
_ONE_EXPERT = re.compile(r"\.experts\.\d+\.\w+$")
# Gated experts have three matrices, others two.
_EXPERT_LEAVES = ({"w1", "w2", "w3"}, {"gate_proj", "up_proj", "down_proj"}, {"up_proj", "down_proj"})
_LARGEST_VOCABULARY_BEFORE, _LARGEST_VOCABULARY = 257_024, 258_048  # where lm_head takes LoRA
_EXPERT_NAME = re.compile(r"\.experts(\.|$)")


def find_merge_obstacle(config: Mapping[str, Any]) -> str | None:
    """Why no weights of the base model's shape do what this LoRA does; None when merging is possible.

    :param config: adapter_config.json, or the LoRA keys of a run that is yet to be: it can be asked before training
    """
    if config.get("alora_invocation_tokens"):
        return (
            "An activated LoRA (aLoRA) works from its invocation tokens on, so it cannot be merged, "
            "and vLLM would apply it to every token. Serve it with PEFT."
        )
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        return (
            f"init_lora_weights {init!r} changes the base weights under the adapter. Save it with PEFT's "
            "path_initial_model_for_weight_conversion, which makes a plain LoRA of it."
        )
    for key in (*_UNREAD_VARIANTS, *_UNIMPLEMENTED):
        if config.get(key):
            return f"A LoRA with {key} computes what neither vLLM nor a merge can. Serve it with PEFT."
    return None


def find_adapter_obstacle(config: Mapping[str, Any]) -> str | None:
    """Why vLLM takes no adapter that does what this LoRA does, so that only merging is right; None when it does."""
    if obstacle := find_merge_obstacle(config):
        return obstacle
    if config.get("use_dora"):
        return "vLLM has no DoRA in any release. Set vllm_export to 'merged'."
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        return "vLLM takes no trained biases in any release. Set vllm_export to 'merged'."
    return None


def check_config(adapter: Adapter) -> Iterator[Finding]:
    config = adapter.config
    if (kind := str(config.get("peft_type"))) != "LORA":
        yield Finding("rejected", f"vLLM loads LoRA adapters, and peft_type is {kind!r}.")
        return
    saved = list(config.get("modules_to_save") or [])
    if saved:
        yield Finding(
            "rejected", f"vLLM takes no modules_to_save ({', '.join(saved)}).", until=CLASSIFIER_HEADS
        )
    if others := [name for name in saved if name not in ("classifier", "score")]:
        reason = f"vLLM takes no modules_to_save but classifier and score ({', '.join(others)})."
        yield Finding("rejected", reason, since=CLASSIFIER_HEADS)
    if config.get("use_dora"):
        yield Finding("rejected", "vLLM has no DoRA.")
    if config.get("bias", "none") != "none":
        yield Finding("rejected", f"vLLM takes no trained biases (bias is {config['bias']!r}).")
    yield from _check_ignored(config)


def _check_ignored(config: dict[str, Any]) -> Iterator[Finding]:
    """What releases before 0.32 silently ignore and later ones refuse, and what none ever reads."""
    for sentence in _unimplemented(config):
        yield Finding("loads_wrong", sentence, until=PATTERNS)
        yield Finding("rejected", sentence, since=PATTERNS)
    if config.get("lora_bias"):
        sentence = "vLLM has no lora_bias."
        yield Finding("loads_wrong", sentence, until=EXPERT_LORA)  # 0.8.5 drops it with a warning
        yield Finding("rejected", sentence, since=EXPERT_LORA, until=CLASSIFIER_HEADS)
        yield Finding("loads_wrong", sentence, since=CLASSIFIER_HEADS, until=PATTERNS)
        yield Finding("rejected", sentence, since=PATTERNS)
    for variant in _UNREAD_VARIANTS:
        if config.get(variant):
            yield Finding("loads_wrong", f"vLLM does not read {variant}.")


def _unimplemented(config: dict[str, Any]) -> Iterator[str]:
    if config.get("alora_invocation_tokens"):
        yield "vLLM has no activated LoRA (aLoRA): it would apply the adapter to every token."
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        yield f"init_lora_weights {init!r} changes the base weights under the adapter, and vLLM does not."
    for key in _UNIMPLEMENTED:
        if config.get(key):
            yield f"vLLM has no {key}."


def check_patterns(adapter: Adapter) -> Iterator[Finding]:
    """Releases before 0.32 multiply every module by lora_alpha / r, later ones match the patterns with modules."""
    config = adapter.config
    if not (config.get("rank_pattern") or config.get("alpha_pattern")):
        return
    modules = adapter.lora_modules
    trained = [scaling_of(config, module) for module in modules]
    if differing := _differing(modules, trained, [plain_scaling(config)] * len(modules)):
        reason = f"rank_pattern and alpha_pattern are ignored before vLLM 0.32 ({len(differing)} modules, {differing[0]} for one)."
        yield Finding("loads_wrong", reason, until=PATTERNS)
    if differing := _differing(modules, trained, [plain_scaling(config, module) for module in modules]):
        reason = f"vLLM matches rank_pattern and alpha_pattern with modules, and PEFT with parameters ({differing[0]})."
        yield Finding("loads_wrong", reason, since=PATTERNS)


def _differing(modules: list[str], trained: list[float], applied: list[float]) -> list[str]:
    pairs = zip(modules, trained, applied, strict=True)
    return [module for module, one, other in pairs if not math.isclose(one, other, rel_tol=1e-9)]


def check_tensors(adapter: Adapter) -> Iterator[Finding]:
    for name in adapter.tensors:
        module, role = parse_tensor_name(name)
        if role is Role.FROZEN and name.endswith(
            (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
        ):
            reason = (
                "A copy of the base embedding lies in the adapter (base_layer), which vLLM takes since 0.12."
            )
            yield Finding("rejected", reason, until=NO_EXTRA_VOCABULARY)
        elif role is Role.WHOLE and module.rpartition(".")[2] in ("classifier", "score"):
            yield Finding("rejected", f"vLLM takes no whole {module}.", until=CLASSIFIER_HEADS)
        elif role is Role.LORA_BIAS:
            continue  # check_config knows how each release takes it
        elif role in _NO_LORA_TENSOR:
            yield Finding(
                "rejected", f"{_NO_LORA_TENSOR[role]} lies in the adapter, and vLLM takes LoRA tensors alone."
            )


_NO_LORA_TENSOR = {
    Role.FROZEN: "A copy of a base weight",
    Role.WHOLE: "A whole weight matrix",
    Role.ROWS: "A block of token rows (trainable_token_indices)",
    Role.MAGNITUDE: "A DoRA magnitude",
    Role.BIAS: "A bias",
    Role.OTHER: "A tensor of another kind",
}


def check_rank(adapter: Adapter) -> Iterator[Finding]:
    limit = MAX_LORA_RANKS[-1]
    if adapter.max_rank > limit:
        yield Finding("rejected", f"Rank {adapter.max_rank} is more than vLLM takes ({limit}).")
    elif adapter.max_named_rank > limit:
        reason = f"rank_pattern names rank {adapter.max_named_rank}, more than vLLM takes ({limit}), though no module has it."
        yield Finding("rejected", reason, since=PATTERNS)


def check_experts(adapter: Adapter) -> Iterator[Finding]:
    experts = [module for module in adapter.lora_modules if _EXPERT_NAME.search(module)]
    if not experts:
        return
    yield Finding("rejected", "vLLM takes LoRA on expert layers since 0.11.1.", until=EXPERT_LORA)
    if lacking := _incomplete_experts(set(experts)):
        reason = f"vLLM wants LoRA on every matrix of an expert, and {lacking} lacks some."
        yield Finding("loads_wrong", reason, until=NO_EXTRA_VOCABULARY)
        refused = not is_fused_experts(lacking) or _keeps_fused(adapter, measured_releases()[-1])
        yield Finding("rejected" if refused else "loads_wrong", reason, since=NO_EXTRA_VOCABULARY)
    if not any(map(is_fused_experts, experts)) and adapter.config.get("use_rslora"):
        reason = "The experts' rsLoRA scaling is ignored by vLLM 0.12 and some later releases."
        yield Finding("loads_wrong", reason, since=NO_EXTRA_VOCABULARY, until=CLASSIFIER_HEADS)


def check_fused_experts(adapter: Adapter, release: str) -> Iterator[Finding]:
    if not any(map(is_fused_experts, adapter.lora_modules)):
        return
    base = adapter.base
    if not _keeps_fused(adapter, release):
        if (
            base is not None
            and base.architecture == "GptOssForCausalLM"
            and not follows(release, NO_EXTRA_VOCABULARY)
        ):
            yield Finding("loads_wrong", "Before 0.12, vLLM reads the experts' fused LoRA in another order.")
            return
        reason = "vLLM wants a LoRA for each expert of this model, and the adapter's is fused"
        if follows(release, PATTERNS):
            reason += " (a server with --enable-mixed-moe-lora-format takes it with is_3d_lora_weight on the request)"
        yield Finding("loads_wrong", f"{reason}.")


def _keeps_fused(adapter: Adapter, release: str) -> bool:
    base = adapter.base
    return base is not None and support_of(base.architecture, release).keeps_experts_fused


def _incomplete_experts(modules: set[str]) -> str | None:
    """The first expert, or fused layer of experts, without LoRA on one of its matrices."""
    leaves: dict[str, set[str]] = {}
    for module in modules:
        if is_fused_experts(module):
            leaves.setdefault(module.removesuffix(".base_layer"), set()).add(module)
        elif _ONE_EXPERT.search(module):
            expert, _, leaf = module.rpartition(".")
            leaves.setdefault(expert, set()).add(leaf)
    for expert, found in leaves.items():
        wanted = {expert, f"{expert}.base_layer"} if is_fused_experts(expert) else None
        if found != wanted and found not in _EXPERT_LEAVES:
            return expert
    return None


def check_architecture(adapter: Adapter, release: str) -> Iterator[Finding]:
    """What the release takes for the base model's architecture."""
    if adapter.base is None:
        return
    name = adapter.base.architecture
    support = support_of(name, release)
    if not support.lora:
        what = f"takes no LoRA for {name}" if support.known else f"does not list {name}"
        yield Finding("rejected", f"vLLM {what}.")
        return
    limit = _LARGEST_VOCABULARY if follows(release, LARGE_VOCABULARY) else _LARGEST_VOCABULARY_BEFORE
    if support.embeddings and (adapter.base.vocabulary or 0) > limit:
        yield Finding("rejected", f"vLLM takes LoRA on {name} up to {limit} tokens of vocabulary.")
    refused = [module for module in adapter.lora_modules if embedding_side(module)]
    refused = [module for module in refused if module.rpartition(".")[2] not in support.embeddings]
    if refused:
        yield Finding("rejected", f"vLLM takes no LoRA on {' and '.join(sorted(refused))} for {name}.")
