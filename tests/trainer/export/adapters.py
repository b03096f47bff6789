"""Adapters that PEFT saves, on tiny random models, with PEFT's own merged weights; and vLLM's rule in torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCABULARY = 96
HIDDEN = 16
_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


def save_base(directory: Path, kind: str, *, dtype: str = "float32", **changes: Any) -> Path:
    """:param kind: llama (in shards), tied, qwen3, mistral, gpt2, mixtral"""
    import torch
    import transformers

    torch.manual_seed(0)
    tied = {"tie_word_embeddings": kind == "tied"}
    classes = {
        "llama": ("Llama", _LLAMA | tied),
        "tied": ("Llama", _LLAMA | tied),
        "qwen3": ("Qwen3", _LLAMA | tied | {"head_dim": 8}),
        "mistral": ("Mistral", _LLAMA | tied),
        "gpt2": (
            "GPT2",
            {"vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": 2, "n_head": 2, "n_positions": 32},
        ),
        "mixtral": ("Mixtral", _LLAMA | tied | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    }
    name, settings = classes[kind]
    head = "GPT2LMHeadModel" if kind == "gpt2" else f"{name}ForCausalLM"
    config = getattr(transformers, f"{name}Config")(**settings | changes)
    model = getattr(transformers, head)(config).to(getattr(torch, dtype))
    model.save_pretrained(directory, max_shard_size="10KB" if kind == "llama" else "1GB")
    return directory


@dataclass
class Saved:
    """An adapter as PEFT saved it, and the weights PEFT merges it to, by their names on disk."""

    directory: Path
    base: Path
    merged: dict[str, Any]


def save_adapter(
    base: Path, directory: Path, *, grow: int = 0, dtype: str = "float32", keep_rows: Any = None, **lora: Any
) -> Saved:
    """Every trained parameter is random, as far from its start as training would leave it.

    :param grow: rows by which the vocabulary grows
    :param keep_rows: ids of the whole embeddings' rows that training leaves alone
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    if grow:
        model.resize_token_embeddings(_rows(model) + grow, mean_resizing=False)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]} | lora
    tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings), autocast_adapter_dtype=False)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            kept = parameter.data.clone()
            parameter.data += torch.randn_like(parameter) * 0.2
            if keep_rows is not None and parameter.shape[0] == _rows(model):
                parameter.data[keep_rows] = kept[keep_rows]
    tuned.save_pretrained(directory)
    write_record(directory, grow, _rows(model))
    return Saved(directory, base, _merge(tuned, directory.with_name(f"{directory.name}-merged")))


def _merge(tuned: Any, directory: Path) -> dict[str, Any]:
    try:
        tuned.merge_and_unload().save_pretrained(directory)
    except NotImplementedError:  # aLoRA
        return {}
    return load_weights(directory)


def write_record(directory: Path, num_new_tokens: Any, size: int) -> None:
    record = {"num_new_tokens": num_new_tokens, "new_embedding_size": size}
    (directory / "added_tokens_info.json").write_text(json.dumps(record))


def _rows(model: Any) -> int:
    return model.get_input_embeddings().weight.shape[0]


def load_weights(directory: Path) -> dict[str, Any]:
    """Every tensor of a model's or an adapter's directory; a tied output embedding is filled in."""
    from safetensors.torch import load_file

    files = [
        path for path in sorted(directory.glob("*.safetensors")) if path.name != "new_embeddings.safetensors"
    ]
    weights = {name: tensor for path in files for name, tensor in load_file(path).items()}
    for embedding in ("model.embed_tokens.weight", "transformer.wte.weight"):
        if embedding in weights:
            weights.setdefault("lm_head.weight", weights[embedding])
    return weights


def served_weights(adapter: Path, base: Path, *, release: float = 0.33) -> dict[str, Any]:
    """What vLLM computes with: base + scaling · B·A, by config.r and lora_alpha alone, rows appended up to 0.11."""
    import torch
    from safetensors.torch import load_file

    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = {name.removeprefix("base_model.model."): t.float() for name, t in load_weights(adapter).items()}
    weights = {name: tensor.float().clone() for name, tensor in load_weights(base).items()}
    rows_file = adapter / "new_embeddings.safetensors"
    if release < 0.12 and rows_file.exists():
        rows = load_file(rows_file)
        for module, key in (("model.embed_tokens", "input_embeddings"), ("lm_head", "output_embeddings")):
            if any(name.startswith(f"{module}.lora") for name in tensors):
                weights[f"{module}.weight"] = torch.cat([weights[f"{module}.weight"], rows[key].float()])
    scaling = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            module, b = name.removesuffix(".lora_A.weight"), tensors[name.replace("lora_A", "lora_B")]
            weights[f"{module}.weight"] += scaling * (b @ a)
        elif name.endswith(".lora_embedding_A"):
            module, b = name.removesuffix(".lora_embedding_A"), tensors[name.replace("ding_A", "ding_B")]
            weights[f"{module}.weight"] += scaling * (b @ a).T
        else:
            assert "lora" in name, f"{name} is no LoRA tensor"
    return weights


def tensor_header(path: Path) -> dict[str, Any]:
    """Name → dtype and shape, by the format alone."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {
        name: (entry["dtype"], tuple(entry["shape"]))
        for name, entry in header.items()
        if name != "__metadata__"
    }


def assert_same_weights(actual: dict[str, Any], expected: dict[str, Any], *, tolerance: float = 1e-6) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].shape == tensor.shape, name
        difference = (actual[name].float() - tensor.float()).abs().max().item()
        assert difference <= tolerance, f"{name} differs by {difference}"


def outcomes(verdicts: list[dict[str, Any]]) -> dict[str, str]:
    return {verdict["releases"]: verdict["verdict"] for verdict in verdicts}


def file_bytes(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
