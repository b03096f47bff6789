"""Ask a model the rows it was never trained on, and compare two such evaluations."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, TypedDict

log = logging.getLogger(__name__)


class Verdict(TypedDict):
    """Shares of held-out rows whose answer holds what was expected, with the untuned model and the tuned one."""

    num_rows: int
    held_out_before: float
    held_out_after: float
    is_better: bool


def evaluate(
    *, model: str, data: str, output: str, adapter: str | None = None, max_new_tokens: int = 12
) -> str:
    """Run `python -m trainer.evaluate` in a process of its own and return the path of the JSON it wrote.

    :raises RuntimeError: it failed; its own sentence is in the message
    """
    command = [
        sys.executable,
        "-P",
        "-m",
        "trainer.evaluate",
        "--model",
        model,
        "--data",
        data,
        "--output",
        output,
    ]
    command += ["--max-new-tokens", str(max_new_tokens), *(["--adapter", adapter] if adapter else [])]
    # The worker's secrets (database, Fernet key) are Airflow's; none is the trainer's.
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW__", "_AIRFLOW__"))
    }
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if ended.returncode != 0:
        raise RuntimeError(
            f"The evaluation ended with code {ended.returncode}: {ended.stderr.strip()[-2000:]}"
        )
    for sample in read_evaluation(output)["samples"]:
        log.info("%r: expected %r, answered %r", sample["prompt"], sample["expected"], sample["answer"])
    return output


def compare(*, before: str, after: str) -> Verdict:
    """Log and return what tuning changed.

    :param before: JSON file that `trainer.evaluate` wrote for the untuned model
    :param after: the same rows, the tuned model
    """
    untuned, tuned = read_evaluation(before), read_evaluation(after)
    verdict: Verdict = {
        "num_rows": tuned["num_rows"],
        "held_out_before": untuned["contains"],
        "held_out_after": tuned["contains"],
        "is_better": tuned["contains"] > untuned["contains"],
    }
    log.info("held-out before: %.2f after: %.2f", untuned["contains"], tuned["contains"])
    return verdict


def read_evaluation(path: str) -> dict[str, Any]:
    evaluation: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return evaluation
