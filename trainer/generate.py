"""A model, with an adapter or without, that answers prompts greedily in batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from airflow_provider_sft.contract.names import ADDED_TOKENS_FILE, NEW_EMBEDDINGS_FILE
from trainer.files import read_json
from trainer.pretrained import load_tokenizer_files, load_whole_model

Prompt = str | list[dict[str, Any]]


class Generator:
    """:param max_new_tokens: where an answer that does not end is cut"""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, *, max_new_tokens: int) -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer
        self._tokenizer.padding_side = "left"
        self._tokenizer.pad_token = self._tokenizer.pad_token or self._tokenizer.eos_token
        self._max_new_tokens = max_new_tokens

    @classmethod
    def load(cls, model_path: str, adapter_path: str | None = None, *, max_new_tokens: int) -> Generator:
        """On the accelerator if there is one; an adapter brings its own tokenizer, if tokens were added."""
        tokenizer = load_tokenizer_files(_tokenizer_source(model_path, adapter_path))
        dtype = torch.float32 if _device() == "cpu" else torch.bfloat16  # CPUs without AMX crawl in bfloat16
        model = load_whole_model(model_path, dtype=dtype)
        if adapter_path:
            _make_room(model, len(tokenizer), Path(adapter_path))
            model = PeftModel.from_pretrained(model, adapter_path)
        return cls(model.to(_device()), tokenizer, max_new_tokens=max_new_tokens)

    def answer(self, prompts: Sequence[Prompt], *, batch_size: int) -> list[str]:
        """In the order of `prompts`. Rows of like length share a batch, so that little is padding."""
        texts = [self._render(prompt) for prompt in prompts]
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        answers = [""] * len(texts)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            for index, answer in zip(batch, self._complete([texts[index] for index in batch]), strict=True):
                answers[index] = answer
        return answers

    def _render(self, prompt: Prompt) -> str:
        if isinstance(prompt, str):
            return prompt
        return str(self._tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False))

    @torch.inference_mode()
    def _complete(self, texts: list[str]) -> list[str]:
        inputs = self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        generated = self._model.generate(
            **inputs.to(self._model.device),
            max_new_tokens=self._max_new_tokens,
            do_sample=False,
            pad_token_id=self._tokenizer.pad_token_id,
            eos_token_id=self._tokenizer.eos_token_id,
        )
        prompt_tokens = inputs.input_ids.shape[1]
        return list(self._tokenizer.batch_decode(generated[:, prompt_tokens:], skip_special_tokens=True))


def _tokenizer_source(model_path: str, adapter_path: str | None) -> str:
    own = adapter_path and Path(adapter_path, "tokenizer_config.json").is_file()
    return str(adapter_path) if own else model_path


def _make_room(model: Any, num_tokens: int, adapter_dir: Path) -> None:
    """Rows for the tokens that tuning added, with what `new_embeddings.safetensors` holds for them."""
    known = model.get_input_embeddings().weight.shape[0]
    path = adapter_dir / NEW_EMBEDDINGS_FILE
    new = load_file(path) if path.is_file() else {}
    added = (read_json(adapter_dir / ADDED_TOKENS_FILE) or {}).get("num_new_tokens")
    rows = known + next((len(weight) for weight in new.values()), added if isinstance(added, int) else 0)
    if max(rows, num_tokens) > known:
        model.resize_token_embeddings(max(rows, num_tokens), mean_resizing=False)
    layers = {
        "input_embeddings": model.get_input_embeddings,
        "output_embeddings": model.get_output_embeddings,
    }
    for name, weight in new.items():
        with torch.no_grad():
            layers[name]().weight[known:rows] = weight


def _device() -> str:
    if not torch.accelerator.is_available():
        return "cpu"
    return str(torch.accelerator.current_accelerator())
