"""`make gpu-test`: the trainer on this machine's GPU. Without one, these tests skip."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread

import pytest

from tests import tiny


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Only who asks with `-m gpu` gets these: elsewhere they would say nothing."""
    if "gpu" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU is visible")


@pytest.fixture(scope="session")
def small_model_dir(shared_dir: Path, gpu: None) -> Path:
    """A Llama of 0.3 B parameters in bfloat16, untrained, with the tiny one's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = shared_dir / "small-llama"
    tokenizer = tiny.train_tokenizer()
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=1024, intermediate_size=4096, num_hidden_layers=12, num_attention_heads=16,
        num_key_value_heads=4, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


class MemoryWatch:
    """The most that this GPU held while a run went on, above what it held before.

    It is the driver's own count, which includes about half a GB of context for each process.
    """

    def __init__(self) -> None:
        self.before_bytes = self._read()
        self.peak_bytes = 0
        self._done = Event()
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        return self.peak_bytes - self.before_bytes

    def _watch(self) -> None:
        while not self._done.is_set():
            self.peak_bytes = max(self.peak_bytes, self._read())
            time.sleep(0.2)

    def _read(self) -> int:
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        answer = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        return max(int(line) for line in answer.split()) * 2**20


@pytest.fixture
def watch_memory() -> Iterator[Callable[[], MemoryWatch]]:
    watches: list[MemoryWatch] = []

    def start() -> MemoryWatch:
        watches.append(MemoryWatch())
        return watches[-1]

    yield start
    for watch in watches:
        watch.stop()
