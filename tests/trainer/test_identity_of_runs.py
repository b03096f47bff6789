"""A whole run: extended, repaired, and again from a directory of the first version."""

from __future__ import annotations

import json
import shutil

from safetensors.torch import load_file

from tests.trainer.here import run_here
from tests.trainer.test_identity import write_v1_record

RUN = {"SFT_RUN_ID": "sales/2026-01-01/tune"}


def test_finished_run_is_repaired_extended_and_known_from_the_first_version(lora_config, tmp_path):
    out = tmp_path / "out"
    config = {**lora_config, "lr_scheduler_type": "constant", "report": False}
    assert run_here(config, **RUN)["exit_code"] == 0
    trained = load_file(out / "adapter_model.safetensors")

    (out / "adapter_model.safetensors").unlink()
    repaired = run_here(config, **RUN)
    assert (repaired["exit_code"], repaired["steps"]) == (0, 8)
    assert any("adapter_model.safetensors is missing" in notice for notice in repaired["notices"])
    again = load_file(out / "adapter_model.safetensors")
    assert all(trained[name].equal(again[name]) for name in trained)

    write_v1_record(out, config, RUN["SFT_RUN_ID"])
    (out / ".complete").write_text("")
    shutil.rmtree(out / "checkpoint-8")
    (out / ".complete").unlink()  # as if killed at step 4, before the upgrade
    resumed = run_here(config, **RUN)
    assert (resumed["exit_code"], resumed["resumed_from_step"], resumed["steps"]) == (0, 4, 8)

    longer = run_here({**config, "max_steps": 10}, **RUN)
    assert (longer["exit_code"], longer["resumed_from_step"], longer["steps"]) == (0, 8, 10)
    assert json.loads((out / "result-step-8.json").read_text())["steps"] == 8
