"""What refusing a bad config costs: CPU seconds and peak memory of `sft-config validate`, beside a bare Python.

The peer (fms-hf-tuning 3.2.2) needed 4.6 CPU s and 0.9 GB for the same when measured on 2 cores; with FMS_PYTHON set to the
Python of a virtual environment that holds it, it is measured again.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

_RUNS = 7
_BAD = {
    "model_name_or_path": "/models/m",
    "training_data_path": "/data/t.jsonl",
    "output_dir": "/out",
    "learning_rte": 1e-5,
    "peft_method": "LORA",
    "lora_dropout": 1.5,
    "accelerate_launch_args": {"num_proceses": 2},
}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "bad.json"
        path.write_text(json.dumps(_BAD))
        sft_config = str(Path(sys.executable).with_name("sft-config"))
        trainer_env = {
            "SFT_TRAINER_CONFIG_JSON_PATH": str(path),
            "TERMINATION_LOG_FILE": str(Path(scratch) / "term"),
        }
        report("bare python", [sys.executable, "-c", "pass"], {})
        report("sft-config validate (aim < 0.3 s, < 60 MB)", [sft_config, "validate", str(path)], {})
        report("python -m trainer", [sys.executable, "-P", "-m", "trainer"], trainer_env)
        if peer := os.environ.get("FMS_PYTHON"):
            report("fms-hf-tuning", [peer, "-m", "tuning.sft_trainer"], trainer_env)
    in_process()


def report(name: str, argv: list[str], env: dict[str, str]) -> None:
    runs = [measure(argv, {**os.environ, **env}) for _ in range(_RUNS)]
    cpu_s = statistics.median(run[0] for run in runs)
    peak_mb = statistics.median(run[1] for run in runs)
    print(f"{name:<45} {cpu_s:7.3f} CPU s  {peak_mb:7.1f} MB peak  exit {runs[-1][2]}")


def measure(argv: list[str], env: dict[str, str]) -> tuple[float, float, int]:
    """CPU seconds, peak MB, exit code."""
    pid = os.posix_spawn(
        argv[0],
        argv,
        env,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ],
    )
    _, status, usage = os.wait4(pid, 0)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, os.waitstatus_to_exitcode(status)


def in_process() -> None:
    """What an Airflow worker pays, whose Python runs already."""
    start_s = time.process_time()
    from airflow_provider_sft.contract.validation import check_config

    check_config(_BAD)
    first_s = time.process_time() - start_s
    times_s = []
    for _ in range(50):
        start_s = time.process_time()
        check_config(_BAD)
        times_s.append(time.process_time() - start_s)
    print(
        f"{'check_config in a running Python':<45} {first_s:7.3f} CPU s first, {statistics.median(times_s) * 1e3:.1f} ms after"
    )


if __name__ == "__main__":
    main()
