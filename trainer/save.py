"""The final model: written beside its place, flushed, then moved in file by file, weights last."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.names import ADDED_TOKENS_FILE
from airflow_provider_sft.contract.outcome import ModelKind
from trainer.checkpoints import STAGING_DIR
from trainer.files import sync_and_describe, sync_directory, write_json

# From an earlier attempt or another export; a half-replaced set must not load.
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json")


def save_final(engine: Any, model_dir: Path, *, new_rows: int) -> dict[str, dict[str, Any]]:
    """Write the tuned model, its tokenizer and the record of added tokens to `model_dir`. Every rank comes here.

    :param new_rows: rows by which the vocabulary grew, for `added_tokens_info.json`
    :returns: the files as `sync_and_describe` gives them, on rank 0
    """
    staged = model_dir / STAGING_DIR / "final"
    if engine.is_world_process_zero():
        shutil.rmtree(staged, ignore_errors=True)
    engine.accelerator.wait_for_everyone()
    if engine.is_fsdp_enabled:
        # Sharded state would leave a directory of shards and no weights.
        engine.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    engine.save_model(str(staged))
    engine.accelerator.wait_for_everyone()
    if not engine.is_world_process_zero():
        return {}
    embedding = engine.model.get_input_embeddings()
    # Of PEFT's wrapper the weight is computed, under FSDP with the ranks that are not here.
    rows = getattr(embedding, "original_module", embedding).weight.shape[0]
    write_json(staged / ADDED_TOKENS_FILE, {"num_new_tokens": new_rows, "new_embedding_size": rows})
    (staged / "training_args.bin").unlink(missing_ok=True)  # a pickle; result.json holds the config's digest
    files = sync_and_describe(staged)
    _move_in(staged, model_dir)
    return files


def model_kind_of(engine: Any) -> ModelKind:
    return "adapter" if hasattr(engine.model, "peft_config") else "full"


def _move_in(staged: Path, model_dir: Path) -> None:
    for pattern in _WEIGHTS:
        for stale in model_dir.glob(pattern):
            stale.unlink()
    for path in sorted(staged.iterdir(), key=lambda path: path.suffix == ".safetensors"):
        path.replace(model_dir / path.name)
    shutil.rmtree(model_dir / STAGING_DIR)
    sync_directory(model_dir)
