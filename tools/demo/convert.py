"""A Llama in a GGUF file as safetensors in bfloat16: `python -m tools.demo.convert FILE.gguf DIRECTORY`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM


def convert(gguf: Path, model_dir: Path) -> None:
    """The directory appears whole or not at all."""
    staged = model_dir.with_name(f"{model_dir.name}.part")
    shutil.rmtree(staged, ignore_errors=True)
    packed = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = {key: value for key, value in packed.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig.from_dict(config)).to(torch.bfloat16)
    model.load_state_dict(packed.state_dict())
    model.save_pretrained(staged)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.model_max_length = packed.config.max_position_embeddings
    tokenizer.save_pretrained(staged)
    staged.replace(model_dir)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
