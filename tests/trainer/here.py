"""A rank, or a parent, in the test's own process: for what a process of its own would not tell better."""

from __future__ import annotations

import base64
import json
import signal
from pathlib import Path
from typing import Any

import torch

from airflow_provider_sft.contract.outcome import Result
from trainer.__main__ import run
from trainer.consensus import StopSignal
from trainer.rank import ParentChannel, RankChannel, RunOrder
from trainer.stop import StopRequest
from trainer.train import train


def train_here(
    config: dict, scratch: Path, *, resume_from: Path | None = None, stop: StopSignal | None = None
) -> dict[str, Any]:
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
        return train(RankChannel(scratch, 0), order, stop or StopSignal())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        torch.set_num_threads(num_threads)


def run_here(config: dict, *, stop: StopRequest | None = None, **env: str) -> Result:
    """The parent as `python -m trainer` runs it, with nothing in its environment but `env`; ranks are processes."""
    environ = {
        "SFT_TRAINER_CONFIG_JSON_ENV_VAR": base64.b64encode(json.dumps(config).encode()).decode(),
        **env,
    }
    return run(environ, stop or StopRequest())
