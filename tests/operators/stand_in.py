"""A program that speaks the trainer's contract and ends as the test wants: for exit codes, signals and kills.

STAND_IN_EXIT: the exit code (default 0) · STAND_IN_RESULT: `none`, `garbage` or unset (a result that fits the code)
STAND_IN_STEPS: how many progress lines, 20 ms apart · STAND_IN_ON_TERM: `save` (206), `ignore`, `succeed` or unset
STAND_IN_LINE, STAND_IN_LAST_LINE: what to print first and last · STAND_IN_RECORD: a file that gets one JSON line with what arrived
STAND_IN_DIE: a signal to die of · STAND_IN_SAVE_S: how long it saves
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from airflow_provider_sft.contract.codec import read_config
from airflow_provider_sft.contract.names import CONTRACT_VERSION, RUN_ID_ENV_VAR, TERMINATION_LOG_ENV_VAR

STEPS = int(os.environ.get("STAND_IN_STEPS", "2"))


CONFIG = read_config(os.environ)


def report(exit_code: int, status: str, reason: str = "") -> None:
    form = os.environ.get("STAND_IN_RESULT")
    if form == "none":
        return
    result = {
        "contract_version": CONTRACT_VERSION,
        "status": status,
        "exit_code": exit_code,
        "reason": reason,
        "advice": "",
        "steps": STEPS,
        "last_checkpoint_step": max(STEPS - 1, 0),
        "attempt": 1,
    }
    if status == "succeeded":
        result |= {"model_path": "/data/output/final", "model_kind": "adapter", "train_loss_last": 1.5}
        result["eval_loss"] = float(CONFIG.get("learning_rate", 1))
    text = "\x1b[31mno json" if form == "garbage" else json.dumps(result)
    Path(os.environ[TERMINATION_LOG_ENV_VAR]).write_text(text)


def on_term(_signum: int, _frame: object) -> None:
    reaction = os.environ.get("STAND_IN_ON_TERM")
    if reaction == "save":
        print("saving", flush=True)
        time.sleep(float(os.environ.get("STAND_IN_SAVE_S", "0")))
        print("all is saved", flush=True)
        report(206, "interrupted", "Interrupted by SIGTERM.")
        raise SystemExit(206)
    if reaction == "succeed":
        report(0, "succeeded")
        raise SystemExit(0)


def main() -> int:
    record = {
        "config": CONFIG,
        "run_id": os.environ[RUN_ID_ENV_VAR],
        "pid": os.getpid(),
        "env": dict(os.environ),
    }
    if path := os.environ.get("STAND_IN_RECORD"):
        with Path(path).open("a") as file:
            file.write(json.dumps(record) + "\n")
    if "STAND_IN_ON_TERM" in os.environ:
        signal.signal(signal.SIGTERM, on_term)
    if "STAND_IN_ORPHAN" in os.environ:
        subprocess.Popen(["sleep", "60"])
    print(os.environ.get("STAND_IN_LINE", "WARNING: loading"), flush=True)
    for step in range(1, STEPS + 1):
        progress = {
            "event": "progress",
            "attempt": 1,
            "step": step,
            "max_steps": STEPS,
            "epoch": 1.0,
            "loss": 2.0,
        }
        print(json.dumps(progress, separators=(",", ":")), flush=True)
        time.sleep(0.02)
    if line := os.environ.get("STAND_IN_LAST_LINE"):
        print(line, flush=True)
    if name := os.environ.get("STAND_IN_DIE"):
        os.kill(os.getpid(), signal.Signals[name])
    exit_code = int(os.environ.get("STAND_IN_EXIT", "0"))
    report(
        exit_code, "failed" if exit_code else "succeeded", "The reason the trainer gave." if exit_code else ""
    )
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
