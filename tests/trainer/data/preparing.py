"""Prepare rows in a test, and say what of them is trained."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from airflow_provider_sft.contract.settings import resolve_config
from trainer.data.prepare import PreparedData, prepare_data


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def prepare(directory: Path, tokenizer: Any, rows: Any = None, **config: Any) -> PreparedData:
    """
    :param rows: of the training data; None where the config names it
    :param config: keys of the config; `model`, `environ` and `said` besides
    """
    if rows is not None:
        config["training_data_path"] = str(write_rows(directory / "rows.jsonl", rows))
    environ, said = config.pop("environ", {}), config.pop("said", [])
    model_dir = model_config(directory, **config.pop("model", {}))
    settings = resolve_config(
        {"model_name_or_path": str(model_dir), "output_dir": str(directory / "out"), **config}
    )
    return prepare_data(settings, tokenizer, say=said.append, beat=lambda: None, environ=environ)


def model_config(directory: Path, **changes: Any) -> Path:
    """A directory that says a model is a Llama, without weights: data asks for no more."""
    target = directory / "model"
    target.mkdir(exist_ok=True)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64} | changes
    (target / "config.json").write_text(json.dumps(config))
    return target


def trained_texts(prepared: PreparedData, tokenizer: Any) -> list[str]:
    """What each row is trained on, as text."""
    return [decode_trained(row, tokenizer) for row in prepared.train]


def decode_trained(row: Mapping[str, Any], tokenizer: Any) -> str:
    labels = np.asarray(row["labels"])
    return tokenizer.decode(labels[labels != -100].tolist())


def alike(text: str) -> str:
    """What no tokenizer keeps, white space and compatibility forms, taken out."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text))
