"""One release takes adapters: `probe.py SOURCES CASES.json` prints, as JSON, what its own code made of each.

Run in a process of its own, because a process can hold one vLLM. CASES is a list of {name, adapter, base, merged,
expected_modules, vocabulary, max_lora_rank}.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file

from tests.vllm.stand_ins import REAL, install

TOLERANCE = 1e-5
EMBEDDING_MODULES = {"embed_tokens": "input_embeddings", "lm_head": "output_embeddings"}


def main(sources: str, cases: str) -> None:
    finder = install(Path(sources))
    release = _import_release(Path(sources))
    outcomes = {case["name"]: _take(release, case) for case in json.loads(Path(cases).read_text())}
    report = {
        "outcomes": outcomes,
        "real": sorted(set(finder.real) - set(release.failed)),
        "failed": release.failed,
        "absent": [name for name in REAL if not (Path(sources) / f"{name.replace('.', '/')}.py").exists()],
        "stood_in": sorted(set(finder.stood_in)),
    }
    print(json.dumps(report))


def _import_release(sources: Path) -> Any:
    release = SimpleNamespace(failed={}, LoRAConfig=None, Manager=None)
    wanted = {
        "PEFTHelper": ("vllm.lora.peft_helper",),
        "LoRAModel": ("vllm.lora.lora_model", "vllm.lora.models"),
        "LoRAConfig": ("vllm.config.lora",),
        "LoRAModelManager": ("vllm.lora.model_manager", "vllm.lora.models"),
        "VocabParallelEmbeddingWithLoRA": (
            "vllm.lora.layers.vocab_parallel_embedding",
            "vllm.lora.layers.vocal_parallel_embedding",
        ),
        "LogitsProcessorWithLoRA": ("vllm.lora.layers.logits_processor",),
    }
    for attribute, modules in wanted.items():
        setattr(release, attribute, None)
        for module in modules:
            if not (sources / f"{module.replace('.', '/')}.py").exists():
                continue
            try:
                setattr(release, attribute, getattr(importlib.import_module(module), attribute))
                break
            except Exception as error:  # noqa: BLE001
                release.failed[module] = repr(error)
    return release


def _take(release: Any, case: dict[str, Any]) -> dict[str, str]:
    try:
        served = _served_weights(release, case)
    except Exception as error:  # noqa: BLE001
        return {"outcome": "rejected", "why": f"{type(error).__name__}: {error}"[:300]}
    if not case["merged"]:
        return {"outcome": "loads_wrong", "why": "PEFT itself cannot merge it"}
    difference = _difference(served, _load_model(Path(case["merged"])))
    outcome = "loads_right" if difference <= TOLERANCE else "loads_wrong"
    return {"outcome": outcome, "why": f"differs by {difference}"}


def _served_weights(release: Any, case: dict[str, Any]) -> dict[str, torch.Tensor]:
    """As the worker does it: config, validation, tensors, packing, then what is copied into the layers."""
    config = _lora_config(release, case["max_lora_rank"])
    helper = release.PEFTHelper.from_local_dir(case["adapter"], 64)
    helper.validate_legal(config)
    model = _load_lora_model(release, helper, case)
    _pack_experts(release, model, case)
    weights = _load_model(Path(case["base"]))
    for name, lora in _flatten(model).items():
        _apply(release, weights, name, lora, case)
    return weights


def _lora_config(release: Any, max_lora_rank: int) -> Any:
    if release.LoRAConfig is None:
        return SimpleNamespace(max_lora_rank=max_lora_rank, bias_enabled=False, lora_extra_vocab_size=256)
    config = release.LoRAConfig(max_lora_rank=max_lora_rank)
    config.lora_dtype = torch.float32
    return config


def _load_lora_model(release: Any, helper: Any, case: dict[str, Any]) -> Any:
    load = release.LoRAModel.from_local_checkpoint
    offered = {
        "lora_model_id": 1,
        "device": "cpu",
        "dtype": torch.float32,
        "model_vocab_size": case["vocabulary"],
        "embedding_modules": EMBEDDING_MODULES,
        "embedding_padding_modules": ["lm_head"],
        "weights_mapper": None,
    }
    known = inspect.signature(load).parameters
    taken = {key: value for key, value in offered.items() if key in known}
    return load(case["adapter"], set(case["expected_modules"]), peft_helper=helper, **taken)


def _pack_experts(release: Any, model: Any, case: dict[str, Any]) -> None:
    """The release's own packing of experts into one layer, with the manager around it stood in for."""
    if not case["packed"] or release.LoRAModelManager is None:
        return
    manager = release.LoRAModelManager.__new__(release.LoRAModelManager)
    manager.__dict__ |= {
        "packed_modules": case["packed"],
        "modules": {},
        "is_pooling_model": False,
        "supports_mm": False,
        "_is_non_gated_moe": False,
        "_enable_moe_shared_loras": False,
        "_use_ep": False,
        "moe_ep_load_spec": None,
        "_is_3d_moe_model": False,
        "lora_config": SimpleNamespace(),
    }
    if hasattr(manager, "_restrict_to_local_experts"):
        manager._restrict_to_local_experts = lambda name, names: names
    manager._create_merged_loras_inplace(model)


def _flatten(model: Any) -> dict[str, Any]:
    """Packed experts, one a matrix, under the names that they had in the adapter."""
    flat = {}
    for name, lora in model.loras.items():
        if not isinstance(lora.lora_a, list):
            flat[name] = lora
            continue
        for index, leaf in enumerate(("w1", "w2", "w3")):
            for expert in range(_num_experts(lora)):
                a, b, scaling = _expert(lora, index, expert)
                flat[f"{name}.{expert}.{leaf}"] = SimpleNamespace(
                    lora_a=a, lora_b=b, scaling=scaling, embeddings_tensor=None
                )
    return flat


def _num_experts(lora: Any) -> int:
    stacked = lora.lora_a[0].ndim == 3
    return lora.lora_a[0].shape[0] if stacked else len(lora.lora_a) // 3


def _expert(lora: Any, index: int, expert: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    if lora.lora_a[0].ndim == 3:
        return lora.lora_a[index][expert], lora.lora_b[index][expert], lora.scaling[index]
    at = expert * 3 + index
    return lora.lora_a[at], lora.lora_b[at], lora.scaling[at]


def _apply(
    release: Any, weights: dict[str, torch.Tensor], name: str, lora: Any, case: dict[str, Any]
) -> None:
    a, b = lora.lora_a.float(), lora.lora_b.float()
    if case["old_layout"]:  # up to 0.9, lora_a and lora_b are held transposed
        a, b = a.T, b.T
    weight, scaling = f"{name}.weight", lora.scaling
    if weight not in weights:
        return  # a module that the served model does not have: vLLM keeps the tensors and never uses them
    rows = getattr(lora, "embeddings_tensor", None)
    if rows is not None:
        weights[weight] = torch.cat([weights[weight], rows.float()])
    delta = scaling * (b @ a)
    if name.endswith("embed_tokens"):
        _copy_into_layer(release.VocabParallelEmbeddingWithLoRA, a, b, rows, case)
        delta = delta.T
    elif name.endswith("lm_head"):
        _copy_into_layer(release.LogitsProcessorWithLoRA, a, b, rows, case)
    # The buffers are zero beyond the adapter's own vocabulary.
    weights[weight][: len(delta)] += delta


def _copy_into_layer(
    layer_class: Any, a: torch.Tensor, b: torch.Tensor, rows: Any, case: dict[str, Any]
) -> None:
    """The layer's own set_lora, on buffers of the size that its create_lora_weights would make."""
    if layer_class is None:
        return
    layer = layer_class.__new__(layer_class)
    torch.nn.Module.__init__(layer)
    rank, extra = (
        case["max_lora_rank"],
        256 if "embeddings_tensor" in str(inspect.signature(layer_class.set_lora)) else 0,
    )
    vocabulary = case["vocabulary"]
    if "Logits" in layer_class.__name__:
        rows_b = -(-(vocabulary + extra) // 256) * 256 if extra else vocabulary
        layer.lora_a_stacked = torch.zeros(1, 1, rank, a.shape[1])
        layer.lora_b_stacked = torch.zeros(1, 1, rows_b, rank)
    else:
        layer.lora_a_stacked = torch.zeros(1, vocabulary + extra, rank)
        layer.lora_b_stacked = torch.zeros(1, 1, b.shape[0], rank)
        layer.embeddings_slice = None
    arguments = [0, a, b]
    if extra:
        layer.embeddings_tensors = torch.zeros(1, extra, rows.shape[1] if rows is not None else 1)
        arguments.append(rows)
    layer.set_lora(*arguments)


def _load_model(directory: Path) -> dict[str, torch.Tensor]:
    weights = {}
    for path in sorted(directory.glob("*.safetensors")):
        weights |= {name: tensor.float() for name, tensor in load_file(path).items()}
    if "model.embed_tokens.weight" in weights:
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    return weights


def _difference(served: dict[str, torch.Tensor], merged: dict[str, torch.Tensor]) -> float:
    """Rows beyond the tuned vocabulary are ids that no tokenizer gives."""
    served = {
        name: tensor[: len(merged[name])] if name in merged else tensor for name, tensor in served.items()
    }
    if served.keys() != merged.keys() or any(served[name].shape != merged[name].shape for name in merged):
        return float("inf")
    return max((served[name] - merged[name]).abs().max().item() for name in merged)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
