"""What durability costs: a checkpoint against a plain write of its bytes, a resume against a start, a million rows skipped.

Measured on two shared cores: a save takes 2.1 to 2.6 times a plain write's wall time (307 MB in full, 54 MB of LoRA). What
is more than the bytes: a digest of each (hashed beside the flushing, on as many cores as there are), torch's own format,
the check that every weight is finite, and a dozen small files. A million rows of a stream are skipped in 0.07 s.

Interleaved, the least of five. CPU seconds tell what the code costs; wall seconds depend on the disk and who else uses it.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from accelerate import skip_first_batches
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import SFTConfig

from airflow_provider_sft.contract.settings import resolve_config
from tests import tiny
from trainer.callbacks import FiniteCallback
from trainer.checkpoints import CheckpointStore
from trainer.data.batching import PaddedCollator
from trainer.data.prepare import prepare_data
from trainer.engine import Engine

_RUNS = 5
_ROWS, _BATCH = 1_000_000, 4
Seconds = tuple[float, float]  # CPU, wall


def main() -> None:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        root = Path(scratch)
        model_dir = tiny.save_model(root / "tiny")
        bench_save(root, model_dir, lora=False)
        bench_save(root, model_dir, lora=True)
        bench_skip(root, model_dir)
        bench_stream(root, model_dir)
        bench_resume(root, model_dir)


def bench_save(root: Path, model_dir: Path, *, lora: bool) -> None:
    engine = build_engine(root / "save", model_dir, lora=lora, rows=_BATCH * 2)
    engine.train()
    [checkpoint] = (root / "save").glob("checkpoint-*")
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    size_mb = sum(map(len, files.values())) / 1e6
    ours, plain = least(
        lambda: engine._save_checkpoint(engine.model, None), lambda: write_plainly(root / "plain", files)
    )
    print(f"checkpoint of {size_mb:.0f} MB, {'LoRA' if lora else 'full'}, {len(files)} files")
    show("save", ours)
    show("plain write and fsync of the same bytes", plain)
    print(f"  wall {ours[1] / plain[1]:.2f} x, CPU {ours[0] / plain[0]:.2f} x a plain write")
    shutil.rmtree(root / "save")


def write_plainly(target: Path, files: dict[str, bytes]) -> None:
    target.mkdir(exist_ok=True)
    for name, content in files.items():
        with (target / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def bench_skip(root: Path, model_dir: Path) -> None:
    engine = build_engine(root / "skip", model_dir, lora=True, rows=_ROWS + 16 * _BATCH)

    def first_batch(skipped: int) -> Callable[[], object]:
        loader = engine.get_train_dataloader()
        return lambda: next(iter(skip_first_batches(loader, skipped // _BATCH) if skipped else loader))

    skip, start = least(first_batch(_ROWS), first_batch(0))
    print(f"first batch of {_ROWS:,} rows and a few more, in random order")
    show("after skipping a million rows", skip)
    show("from the start", start)
    print(f"  skipping costs {skip[0] - start[0]:.3f} CPU s, {skip[1] - start[1]:.3f} s (aim <= 0.1)")


def bench_stream(root: Path, model_dir: Path) -> None:
    path = root / "rows.jsonl"
    with path.open("w") as file:
        for number in range(_ROWS + 5000):
            file.write(f'{{"prompt": "what is {number} plus one?", "completion": " it is {number + 1}."}}\n')
    plan = root / "stream.json"
    sources = [{"name": "rows", "data_paths": [str(path)]}]
    plan.write_text(json.dumps({"dataprocessor": {"streaming": True}, "datasets": sources}))
    config = {"model_name_or_path": str(model_dir), "output_dir": str(root), "data_config_path": str(plan)}
    settings = resolve_config({**config, "max_steps": 5})
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    rows = prepare_data(settings, tokenizer, say=lambda _: None, beat=lambda: None, environ={}).train
    next(iter(rows))
    state = rows.state_dict()
    # As if a million rows had been read: a row a line.
    state["examples_iterable"].update(line=_ROWS, total=_ROWS, rows=1)

    def first_row(place: dict | None) -> Callable[[], object]:
        def read() -> None:
            rows.load_state_dict(place)
            next(iter(rows))

        return read

    skip, start = least(first_row(state), first_row(None))
    print(f"first row of a stream of JSON lines, {path.stat().st_size / 1e6:.0f} MB")
    show("after skipping a million rows", skip)
    show("from the start", start)
    print(f"  skipping costs {skip[0] - start[0]:.3f} CPU s, {skip[1] - start[1]:.3f} s (aim <= 0.1)")


def bench_resume(root: Path, model_dir: Path) -> None:
    data = tiny.write_tweets(root / "tweets.jsonl")
    config = tiny.lora_config(model_dir, data, root / "run") | {"report": False, "max_steps": 8}
    run_trainer(config)
    (root / "run" / ".complete").unlink()
    shutil.rmtree(root / "run" / "checkpoint-8")
    kept = shutil.copytree(root / "run", root / "kept")

    def start_from(source: Path | None) -> Callable[[], None]:
        def run() -> None:
            run_trainer(config)

        def prepare() -> None:
            shutil.rmtree(root / "run")
            if source:
                shutil.copytree(source, root / "run")

        run.prepare = prepare
        return run

    resume, start = least(start_from(kept), start_from(None))
    print("8 steps of a tiny model, from process start to end")
    show("resumed from step 4", resume)
    show("from the start", start)
    print(f"  a resume costs {resume[0] - start[0]:+.2f} CPU s, {resume[0] / start[0]:.2f} x a start")


def run_trainer(config: dict) -> None:
    env = {
        **os.environ,
        "SFT_TRAINER_CONFIG_JSON_ENV_VAR": base64.b64encode(json.dumps(config).encode()).decode(),
        "OMP_NUM_THREADS": "1",
        "LOG_LEVEL": "ERROR",
    }
    subprocess.run([sys.executable, "-P", "-m", "trainer"], env=env, check=True, stdout=subprocess.DEVNULL)


def build_engine(output_dir: Path, model_dir: Path, *, lora: bool, rows: int) -> Engine:
    """A model of 25 M parameters, or a tiny share of them as LoRA."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=512, intermediate_size=2048, num_hidden_layers=6,
        num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    if lora:
        model = get_peft_model(model, LoraConfig(r=64, target_modules="all-linear", task_type="CAUSAL_LM"))
    args = SFTConfig(
        output_dir=str(output_dir), report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
        max_length=None, remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True}, max_steps=2,
        per_device_train_batch_size=_BATCH, save_strategy="steps", save_steps=2, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    ids = torch.full((rows, 4), 20).numpy()
    return Engine(
        model=model,
        args=args,
        train_dataset=Dataset.from_dict({"input_ids": ids, "labels": ids}).with_format("numpy"),
        data_collator=PaddedCollator(),
        processing_class=tokenizer,
        store=CheckpointStore(output_dir, keep=1),
        facts={},
        finite=FiniteCallback(1e3),
    )


def least(*measured: Callable[[], object]) -> list[Seconds]:
    """Of each its least CPU and wall seconds, all run by turns."""
    runs: list[list[Seconds]] = [[] for _ in measured]
    for _ in range(_RUNS):
        for call, seconds in zip(measured, runs, strict=True):
            getattr(call, "prepare", lambda: None)()
            os.sync()
            cpu_s, wall_s = used_cpu_s(), time.perf_counter()
            call()
            seconds.append((used_cpu_s() - cpu_s, time.perf_counter() - wall_s))
    return [(min(cpu for cpu, _ in each), min(wall for _, wall in each)) for each in runs]


def used_cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def show(name: str, seconds: Seconds) -> None:
    print(f"  {name:<42} {seconds[0]:7.3f} CPU s  {seconds[1]:7.3f} s")


if __name__ == "__main__":
    main()
