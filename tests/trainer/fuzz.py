"""Random damage to what a trainer reads: its config, its environment, its files. One seed is one damage."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.exit_codes import ExitCode
from airflow_provider_sft.contract.schema import config_keys
from tests import tiny
from tests.trainer.here import run_here
from tests.trainer.test_checkpoints import leave_foreign
from trainer.checkpoints import CheckpointStore, find_flaw

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 10**30, 1e308, -0.5, "", " ", "0", "none", "x" * 5000, "a\nb", "\x1b[31m", "é\u2028", "../..",
    "/", "/dev/null", "/dev/full", "/proc/self/mem", [], ["x"], [[1]], {}, {"a": 1}, {"a": {"b": []}}, "[1", "{}", "1e-5",
]  # fmt: skip
VARIABLES = {
    "LOG_LEVEL": ["LOUD", "10", ""],
    "SFT_RUN_ID": ["", "x" * 5000, "a\nb", "é"],
    "SFT_ALLOWED_ROOTS": ["", "/nowhere", "relative", ":", "/proc"],
    "SET_NUM_PROCESSES_TO_NUM_GPUS": ["maybe", "2", ""],
    "WORLD_SIZE": ["x", "-1", "0", "2.5", "999999999999"],
    "RANK": ["x", "-1", "7"],
    "MASTER_ADDR": ["", "not a host"],
    "MASTER_PORT": ["x", "-1", "99999"],
    "CUDA_VISIBLE_DEVICES": ["", "x", "-1", "0,0,0"],
    "MLFLOW_TAGS": ["[", "1"],
    "TERMINATION_LOG_FILE": ["/dev/full", "/"],
}
# With them a rank would start: it costs seconds, and `make faults` has it.
_STARTS_A_RANK = ("use_cpu", "accelerate_launch_args")


def damage_file(path: Path, rng: random.Random) -> str:
    content = path.read_bytes()
    how = rng.choice(["cut", "flip", "replace", "empty", "directory", "NULs", "missing", "doubled"])
    if how in ("missing", "directory"):
        path.unlink()
        path.mkdir() if how == "directory" else None
    elif how == "flip":
        position = rng.randrange(max(len(content), 1))
        flipped = bytes([content[position] ^ (1 << rng.randrange(8))]) if content else b""
        path.write_bytes(content[:position] + flipped + content[position + 1 :])
    else:
        kept = content[: rng.randrange(max(len(content), 1))]
        garbage = rng.choice([rng.randbytes(99), b"{}", b"[]", b"[" * 60_000, b"\xff\xfe", b'{"a": 1e999}'])
        path.write_bytes(
            {"cut": kept, "empty": b"", "NULs": kept + bytes(64), "doubled": content * 2}.get(how, garbage)
        )
    return f"{path.name}: {how}"


def damage_anything(root: Path, model_dir: Path, rng: random.Random) -> tuple[dict, dict[str, str], str]:
    """A config and an environment over a run of its own below `root`, of which one thing is damaged."""
    model, out = root / "model", root / "out"
    shutil.copytree(model_dir, model)
    out.mkdir()
    data = tiny.write_tweets(root / "tweets.jsonl", rows=8)
    config = tiny.lora_config(model, data, out)
    env: dict[str, str] = {}
    kind = rng.choice(["config", "config", "environment", "model", "data", "records"])
    if kind == "config":
        key = rng.choice([name for name in config_keys() if name not in _STARTS_A_RANK])
        config[key] = rng.choice(VALUES)
        return config, env, f"{key}={config[key]!r:.60}"
    if kind == "environment":
        name = rng.choice(list(VARIABLES))
        env[name] = rng.choice(VARIABLES[name])
        return config, env, f"{name}={env[name]!r:.60}"
    if kind == "records":
        for name in (
            "attempts.jsonl",
            "progress.json",
            "result.json",
            ".sft.trained.json",
            ".sft.run.json",
            ".sft.lock.json",
        ):
            (out / name).write_text(
                json.dumps({"attempt": 1, "event": "started", "time": 1.0, "step": 1}) + "\n"
            )
    files = {"model": model.iterdir(), "data": [data], "records": out.iterdir()}[kind]
    return config, env, damage_file(rng.choice(sorted(files)), rng)


def end_after(seed: int, root: Path, model_dir: Path) -> tuple[str, dict]:
    """What was damaged, and the result. Where all is well the run ends 208: there are fewer GPUs than it requests."""
    root.mkdir()
    with contextlib.chdir(root):  # a path of the config may be relative
        config, env, damaged = damage_anything(root, model_dir, random.Random(seed))
        result = run_here(config, SFT_EXPECTED_GPUS="9", HF_HUB_OFFLINE="1", **env)
    return damaged, dict(result)


def assert_in_the_table(result: dict) -> None:
    assert result["exit_code"] in set(ExitCode) - {ExitCode.INTERNAL}, result["reason"]
    assert "Traceback" not in result["reason"]


def damage_checkpoint(seed: int, root: Path) -> tuple[str, list[str]]:
    """Two checkpoints without manifest, of which the newer is damaged; what was said when it was looked at."""
    rng, said = random.Random(seed), []
    root.mkdir()
    leave_foreign(root, 4), leave_foreign(root, 8)
    damaged = damage_file(rng.choice(sorted((root / "checkpoint-8").iterdir())), rng)
    found = CheckpointStore(root).newest_valid(said.append)
    assert found is not None
    assert find_flaw(root / "checkpoint-4") is None
    return damaged, said
