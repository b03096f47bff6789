"""Directories as runs leave them, made without training: for whose they are, the files count and not the weights."""

from __future__ import annotations

import json
from pathlib import Path

from airflow_provider_sft.contract.settings import resolve_config
from trainer.completion import write_mark
from trainer.data.files import locate_data
from trainer.digests import Digests
from trainer.files import describe_file
from trainer.identity import RunIdentity, identify_run
from trainer.identity_v1 import find_v1_differences
from trainer.outcome import succeeded_result
from trainer.ownership import Decision, decide_owner
from trainer.run_dir import RunDir
from trainer.trained import Trained

RUN_ID = "sales/2026-01-01/tune"


def identify(config: dict, run_id: str = RUN_ID) -> RunIdentity:
    settings, digests = resolve_config(config), Digests()
    located = locate_data(settings.values, {}, digests)
    return identify_run(settings, located, digests, environ={}, run_id=run_id)


def decide(config: dict, run_id: str = RUN_ID) -> Decision:
    """What happens to the config's output_dir when an attempt of `run_id` comes."""
    located = locate_data(resolve_config(config).values, {})
    old = lambda record: find_v1_differences(record, config, located)  # noqa: E731
    return decide_owner(RunDir(Path(config["output_dir"])), identify(config, run_id), old)


def leave_unfinished(config: dict, *, checkpoints: tuple[int, ...] = (), run_id: str = RUN_ID) -> Path:
    out = Path(config["output_dir"])
    out.mkdir()
    RunDir(out).claim(identify(config, run_id).as_record())
    for step in checkpoints:
        (out / f"checkpoint-{step}").mkdir()
    return out


def leave_finished(config: dict, *, checkpoints: tuple[int, ...] = (), run_id: str = RUN_ID) -> Path:
    out = leave_unfinished(config, checkpoints=checkpoints, run_id=run_id)
    (out / "adapter_model.safetensors").write_bytes(b"weights")
    (out / "adapter_config.json").write_text("{}")
    result = succeeded_result("Tuned.", model_path=str(out), steps=8, notices=[])
    (out / "result.json").write_text(json.dumps(result))
    files = ("adapter_model.safetensors", "adapter_config.json")
    Trained(str(out), {name: describe_file(out / name) for name in files}, {}, []).write(out)
    write_mark(out, result)
    Trained.forget(out)
    return out
