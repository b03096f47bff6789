"""What the model says to a few rows of the data, before tuning and after. For a single process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from airflow_provider_sft.contract.settings import Settings
from trainer.files import write_json
from trainer.run_dir import SAMPLES_FILE, read_samples

_MAX_NEW_TOKENS = 64
_MAX_PROMPT_TOKENS = 1024


def sample_before(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    statistics: Mapping[str, Any],
    settings: Settings,
    output_dir: Path,
) -> None:
    """Ask the untuned model, once a run: an attempt that resumes finds the answers of the first."""
    if not _is_asked(settings) or (output_dir / SAMPLES_FILE).exists():
        return
    samples = _pick_samples(statistics, settings.values["generate_samples"])
    for sample in samples:
        sample["before"] = _generate(model, tokenizer, sample["prompt"])
    write_json(output_dir / SAMPLES_FILE, {"samples": samples})


def sample_after(
    model: Any, tokenizer: PreTrainedTokenizerBase, settings: Settings, output_dir: Path
) -> None:
    """Ask the tuned model the same. An attempt that is interrupted before has no time for it, and the report says so."""
    if not _is_asked(settings):
        return
    samples = read_samples(output_dir)
    for sample in samples:
        sample["after"] = _generate(model, tokenizer, sample["prompt"])
    write_json(output_dir / SAMPLES_FILE, {"samples": samples})


def _is_asked(settings: Settings) -> bool:
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return bool(settings.values["report"]) and not (several and torch.distributed.get_world_size() > 1)


def _pick_samples(statistics: Mapping[str, Any], count: int) -> list[dict[str, str]]:
    """A prompt is a row up to its first trained text, which is what is expected."""
    picked = []
    for segments in statistics.get("samples", []):
        first = next((index for index, (_, trained) in enumerate(segments) if trained), None)
        if first:
            prompt = "".join(text for text, _ in segments[:first])
            picked.append({"prompt": prompt, "expected": segments[first][0]})
    return picked[:count]


@torch.no_grad()
def _generate(model: Any, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """Greedy, so that the same weights give the same text."""
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids[:, -_MAX_PROMPT_TOKENS:]
    ids = ids.to(model.device)
    was_training = model.training
    model.eval()
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=_MAX_NEW_TOKENS,
        do_sample=False,
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model.train(was_training)
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
