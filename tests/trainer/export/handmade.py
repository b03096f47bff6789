"""Adapters and bases written by the format alone, without torch: for tests that need many, or large ones."""

from __future__ import annotations

import json
import random
from pathlib import Path

HIDDEN = 8
VOCABULARY = 40


def write_tensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(content)]}
        offset += len(content)
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # as the safetensors library does
    path.write_bytes(
        len(encoded).to_bytes(8, "little") + encoded + b"".join(content for _, _, content in tensors.values())
    )


def _numbers(chance: random.Random, count: int) -> bytes:
    """Finite ones, of bfloat16."""
    content = bytearray(chance.randbytes(2 * count))
    content[1::2] = bytes(byte & 0xBF for byte in content[1::2])
    return bytes(content)


def make_base(directory: Path, *, vocabulary: int = VOCABULARY, hidden: int = HIDDEN) -> Path:
    directory.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocabulary}
    (directory / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    chance = random.Random(0)
    names = ("model.embed_tokens", "lm_head")
    tensors = {
        f"{name}.weight": ("BF16", (vocabulary, hidden), _numbers(chance, vocabulary * hidden))
        for name in names
    }
    tensors |= {
        f"model.layers.{layer}.self_attn.q_proj.weight": (
            "BF16",
            (hidden, hidden),
            _numbers(chance, hidden**2),
        )
        for layer in range(2)
    }
    write_tensors(directory / "model.safetensors", tensors)
    return directory


def make_adapter(
    directory: Path,
    base: Path,
    *,
    grown_to: int | None = VOCABULARY + 3,
    hidden: int = HIDDEN,
    layers: int = 2,
) -> Path:
    """LoRA on q_proj and, where the vocabulary grew, both whole embeddings, as PEFT saves them."""
    directory.mkdir()
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": str(base),
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    chance = random.Random(1)
    tensors = {}
    for name in ("model.embed_tokens", "lm_head") if grown_to else ():
        shape = (grown_to, hidden)
        tensors[f"base_model.model.{name}.weight"] = ("BF16", shape, _numbers(chance, grown_to * hidden))
    for layer in range(layers):
        prefix = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{prefix}.lora_A.weight"] = ("BF16", (4, hidden), _numbers(chance, 4 * hidden))
        tensors[f"{prefix}.lora_B.weight"] = ("BF16", (hidden, 4), _numbers(chance, 4 * hidden))
    write_tensors(directory / "adapter_model.safetensors", tensors)
    (directory / "adapter_model.safetensors").chmod(0o600)
    return directory
