"""Training on one GPU, beside trl's own trainer: tokens a second, the GPU's memory, the time until the first step.

Both start as a process, on the same rows, model, batch size and dtype, and are timed by windows of ten steps, the best
of which counts. trl runs with its defaults, and without activation checkpointing, which is our default.
"""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.gpu.memory import MemoryWatch

_STEPS, _WINDOW = 40, 10
_WORDS = [chr(97 + first) + chr(97 + second) for first in range(26) for second in range(26)]
# The shape of Llama 3.2 1B, with random weights.
_SHAPE = {
    "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True,
}  # fmt: skip
_WORKLOADS = {
    "LoRA, rows of about 40 tokens, 32 a batch": {"lora": True, "words": (10, 30), "batch": 32},
    "LoRA, rows of 40 to 2,000 tokens, 8 a batch": {"lora": True, "words": (20, 1000), "batch": 8},
    "all weights, rows of 40 to 2,000 tokens, 8 a batch": {"lora": False, "words": (20, 1000), "batch": 8},
}
_TRL = """
import json, sys, time, torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer
order = json.loads(sys.argv[1])
class Clock(TrainerCallback):
    tokens, at = 0, time.monotonic()
    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            rate = (logs["num_tokens"] - self.tokens) / (time.monotonic() - self.at)
            self.tokens, self.at = logs["num_tokens"], time.monotonic()
            print(json.dumps({"tokens_per_s": rate, "loss": logs["loss"]}), flush=True)
rows = [json.loads(line) for line in open(order["data"])]
peft = LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", lora_dropout=0.05) if order["lora"] else None
trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(order["model"], dtype=torch.bfloat16),
    processing_class=AutoTokenizer.from_pretrained(order["model"]),
    args=SFTConfig(output_dir=order["out"], max_steps=order["steps"], per_device_train_batch_size=order["batch"],
        logging_steps=order["window"], max_length=4096, report_to="none", save_strategy="no", disable_tqdm=True,
        learning_rate=1e-5, **order["options"]),
    train_dataset=Dataset.from_list(rows), peft_config=peft, callbacks=[Clock()],
)
trainer.train()
"""


def main() -> None:
    if not torch.cuda.is_available():
        print("No CUDA GPU is visible: nothing was measured.")
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        model_dir = save_model(root / "model")
        for title, workload in _WORKLOADS.items():
            bench(root, model_dir, title, workload)


def bench(root: Path, model_dir: Path, title: str, workload: dict) -> None:
    data = write_rows(root / "rows.jsonl", workload["words"], rows=workload["batch"] * _STEPS)
    print(title)
    ours = measure("ours", lambda: start_ours(root, model_dir, data, workload))
    trls = measure("trl, its defaults", lambda: start_trl(root, model_dir, data, workload))
    bare = measure(
        "trl, no checkpointing",
        lambda: start_trl(root, model_dir, data, workload, gradient_checkpointing=False),
    )
    for name, other in (("trl's defaults", trls), ("trl without checkpointing", bare)):
        if other:
            print(f"  ours trains {ours / other:.2f} x the tokens a second of {name}")


def measure(name: str, start: Callable[[], subprocess.Popen]) -> float:
    """Tokens a second in the best window after the first; 0 where the run failed."""
    began, watch = time.time(), MemoryWatch()
    process = start()
    marks = [read_mark(json.loads(line)) for line in process.stdout if line.startswith('{"')]
    code, peak, wall_s = process.wait(), watch.stop(), time.time() - began
    if code or len(marks) < 2:
        print(f"  {name:<24} ended with code {code}")
        return 0.0
    rate = max(mark.tokens_per_s for mark in marks[1:])
    print(
        f"  {name:<24} {rate:9,.0f} tokens/s  peak {peak / 2**30:5.1f} GiB  {marks[0].at - began:5.1f} s to step "
        f"{_WINDOW}  {wall_s:5.1f} s in all  loss {marks[-1].loss:.4f}"
    )
    return rate


class Mark(NamedTuple):
    """A logged window, at the time it was read."""

    at: float
    tokens_per_s: float
    loss: float


def read_mark(line: dict) -> Mark:
    return Mark(time.time(), line["tokens_per_s"], line["loss"])


def start_trl(root: Path, model_dir: Path, data: Path, workload: dict, **options: object) -> subprocess.Popen:
    order = {
        "model": str(model_dir), "data": str(data), "out": str(root / "trl"), "lora": workload["lora"],
        "batch": workload["batch"], "steps": _STEPS, "window": _WINDOW, "options": options,
    }  # fmt: skip
    return spawn([sys.executable, "-c", _TRL, json.dumps(order)], {})


def start_ours(root: Path, model_dir: Path, data: Path, workload: dict) -> subprocess.Popen:
    shutil.rmtree(root / "ours", ignore_errors=True)
    config = {
        "model_name_or_path": str(model_dir), "training_data_path": str(data), "output_dir": str(root / "ours"),
        "peft_method": "lora" if workload["lora"] else "none", "target_modules": ["all-linear"], "max_length": 4096,
        "max_steps": _STEPS, "per_device_train_batch_size": workload["batch"], "logging_steps": _WINDOW,
        "logging_strategy": "steps", "save_strategy": "no", "learning_rate": 1e-5, "report": False,
    }  # fmt: skip
    if not workload["lora"]:
        del config["target_modules"]
    encoded = base64.b64encode(json.dumps(config).encode()).decode()
    return spawn([sys.executable, "-P", "-m", "trainer"], {"SFT_TRAINER_CONFIG_JSON_ENV_VAR": encoded})


def spawn(argv: list[str], env: dict[str, str]) -> subprocess.Popen:
    quiet = {
        "LOG_LEVEL": "ERROR", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    return subprocess.Popen(argv, env={**os.environ, **quiet, **env}, stdout=subprocess.PIPE, text=True)


def save_model(directory: Path) -> Path:
    from tests import tiny

    tokenizer = tiny.train_tokenizer()
    tokenizer.model_max_length = 8192
    with torch.device("cuda"):
        model = LlamaForCausalLM(
            LlamaConfig(**_SHAPE, bos_token_id=None, eos_token_id=tokenizer.eos_token_id)
        ).to(torch.bfloat16)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    del model
    torch.cuda.empty_cache()
    return directory


def write_rows(path: Path, words: tuple[int, int], *, rows: int) -> Path:
    rng = random.Random(0)
    with path.open("w") as file:
        for _ in range(rows):
            answer = " ".join(rng.choices(_WORDS, k=rng.randint(*words)))
            file.write(json.dumps({"prompt": "say: ", "completion": answer}) + "\n")
    return path


if __name__ == "__main__":
    main()
