"""What preparing data costs, and what packing wastes, beside trl and beside the bare tokenizer on the same rows.

Rows a CPU second, one thread, from a JSON lines file to rows a trainer takes; the best of several interleaved runs. trl's
is its own `_prepare_dataset`; `raw` is `tokenizers`' encode_batch of texts that are in memory already, with their ids.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

# Before anything starts the tokenizer's threads: CPU seconds of one thread are what is compared.
os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import datasets
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer, pack_dataset

from airflow_provider_sft.contract.settings import resolve_config
from trainer.data.batching import PaddingFreeCollator
from trainer.data.chat import ChatTemplate
from trainer.data.packing import pack_best_fit
from trainer.data.prepare import prepare_data

_RUNS = 5
_ROWS = 6_000
_CHATML = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"


def main() -> None:
    datasets.disable_progress_bars()
    datasets.disable_caching()
    tokenizer = make_tokenizer()
    with tempfile.TemporaryDirectory() as scratch:
        for words in (12, 120):
            bench_preparation(Path(scratch), tokenizer, words)
    bench_chat(tokenizer)
    bench_packing()


def bench_preparation(scratch: Path, tokenizer: PreTrainedTokenizerFast, words: int) -> None:
    rows = make_rows(words)
    path = scratch / f"rows-{words}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table, trainer = datasets.Dataset.from_list(rows), make_trl_trainer(scratch, tokenizer)
    texts = [row["prompt"] + row["completion"] + "</s>" for row in rows]
    tokens = sum(len(encoding.ids) for encoding in tokenizer.backend_tokenizer.encode_batch(texts))
    settings = resolve_config(
        {
            "model_name_or_path": str(write_model_config(scratch)),
            "training_data_path": str(path),
            "output_dir": str(scratch / "out"),
        }
    )

    def prepare_ours() -> None:
        shutil.rmtree(scratch / "out", ignore_errors=True)
        prepare_data(settings, tokenizer, say=lambda _: None, beat=lambda: None)

    def prepare_trls() -> None:
        trainer._prepare_dataset(table, tokenizer, trainer.args, False, None, "train")

    def encode_raw() -> None:
        [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch(texts)]

    best = measure({"ours": prepare_ours, "trl": prepare_trls, "raw": encode_raw})
    rates = {name: _ROWS / seconds for name, seconds in best.items()}
    print(
        f"rows of {tokens / _ROWS:.0f} tokens: "
        + ", ".join(f"{n} {rate:,.0f} rows/CPU s" for n, rate in rates.items())
    )
    print(
        f"  ours is {best['trl'] / best['ours']:.1f} x trl (aim >= 2), {best['ours'] / best['raw']:.2f} x raw (aim <= 1.15)"
    )


def bench_chat(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = _CHATML
    template, words = ChatTemplate(tokenizer), " ".join(topics["for"].split()[:50])
    messages = [{"role": role, "content": words} for role in ("user", "assistant") * 32]
    text, _ = template.render_turns(messages)

    def render() -> None:
        for _ in range(20):
            template.render_turns(messages)

    def tokenise() -> None:
        for _ in range(20):
            tokenizer.backend_tokenizer.encode_batch([text], add_special_tokens=False)

    best = measure({"render": render, "tokenise": tokenise})
    total = (best["render"] + best["tokenise"]) / best["tokenise"]
    print(f"a chat of 64 turns costs {total:.2f} tokenisations (aim <= 1.3; fms-hf-tuning 41)")


def bench_packing() -> None:
    """The share of useful tokens: of those a batch computes, and of the room in packs, beside trl's bfd."""
    random = np.random.default_rng(0)
    for capacity in (256, 1024, 4096):
        lengths = np.clip(random.lognormal(4.5, 1.0, 20_000).astype(int), 4, capacity)
        bins = pack_best_fit(lengths.tolist(), capacity)
        table = datasets.Dataset.from_dict({"input_ids": [[1] * length for length in lengths.tolist()]})
        packs = pack_dataset(table, capacity, "bfd")
        rows = [{"input_ids": [1] * int(n), "labels": [1] * int(n)} for n in lengths[:64]]
        batch = PaddingFreeCollator()(rows)
        computed = sum(len(row["input_ids"]) for row in rows) / batch["input_ids"].numel()
        ours, trls = (lengths.sum() / (len(found) * capacity) for found in (bins, packs))
        print(
            f"packs of {capacity}: {computed:.3f} of computed tokens are useful; packs are {ours:.4f} full, trl's bfd {trls:.4f}"
        )


def measure(contestants: dict[str, Callable[[], None]]) -> dict[str, float]:
    """The least CPU seconds of each, in turns."""
    best = dict.fromkeys(contestants, float("inf"))
    for _ in range(_RUNS):
        for name, run in contestants.items():
            started = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - started)
    return best


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 8,192 tokens, learned from Python's own documentation."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8192, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(topics.values(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", model_max_length=4096
    )


def make_rows(words: int) -> list[dict[str, str]]:
    text = " ".join(topics.values()).split()
    pieces = [
        " ".join(text[start : start + words]) for start in range(0, len(text) - words, max(words // 3, 1))
    ]
    return [
        {
            "prompt": pieces[number % len(pieces)],
            "completion": f" {pieces[(number + 7) % len(pieces)]} {number}",
        }
        for number in range(_ROWS)
    ]


def make_trl_trainer(scratch: Path, tokenizer: PreTrainedTokenizerFast) -> SFTTrainer:
    config = LlamaConfig(
        vocab_size=8192, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    args = SFTConfig(output_dir=str(scratch / "trl"), report_to="none", use_cpu=True, max_length=4096)
    few = datasets.Dataset.from_list([{"prompt": "a", "completion": " b"}] * 2)
    return SFTTrainer(LlamaForCausalLM(config), args, train_dataset=few, processing_class=tokenizer)


def write_model_config(scratch: Path) -> Path:
    (scratch / "model").mkdir(exist_ok=True)
    (scratch / "model" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return scratch / "model"


if __name__ == "__main__":
    main()
