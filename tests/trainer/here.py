"""A rank in the test's own process: for what a technique does, which no process of its own would tell better."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import torch

from trainer.consensus import StopSignal
from trainer.rank import ParentChannel, RankChannel, RunOrder
from trainer.train import train


def train_here(config: dict, scratch: Path, *, resume_from: Path | None = None) -> dict[str, Any]:
    """What the result would say; the files lie in the config's output_dir.

    :param scratch: where the parent would talk with its rank
    """
    out = Path(config["output_dir"])
    out.mkdir(exist_ok=True)
    scratch.mkdir(exist_ok=True)
    order = RunOrder(
        config,
        output_dir=str(out),
        model_dir=str(out),
        attempt=1,
        config_sha256="",
        data_sha256="",
        resume_from=str(resume_from) if resume_from else None,
    )
    ParentChannel(scratch, order)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as `TrainerRun`: matrices this small gain nothing from a second
    try:
        return train(RankChannel(scratch, 0), order, StopSignal())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        torch.set_num_threads(num_threads)
