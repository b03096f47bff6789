"""The data of a run, ready to train on: what `train` asks for. Read this first; the other modules are its steps.

locate → choose the format → tokenise and mask → split and mix → pack, once a node and kept; then batches.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.errors import ConfigError
from airflow_provider_sft.contract.settings import Settings
from trainer.attention import explain_padding
from trainer.data.batching import PaddedCollator, PaddingFreeCollator
from trainer.data.cache import DONE_FILE, prepare_once
from trainer.data.export import export_rows
from trainer.data.files import LocatedData, locate_data
from trainer.data.handler_arguments import describe_stray
from trainer.data.job import PreparationJob
from trainer.data.keys import choose_chat_template
from trainer.data.stream import look_at_stream, open_stream
from trainer.data.telling import describe_statistics
from trainer.digests import Digests
from trainer.run_dir import PREPARED_DIR


@dataclass(frozen=True)
class PreparedData:
    """
    :param train: rows of input_ids and labels, a `datasets.Dataset` or IterableDataset
    :param validation: the same, or None
    :param collator: rows to a batch for the model
    :param notices: for the result
    :param statistics: of the training rows; `rows_an_epoch` are what packing and weights make of them, and `validation`
        those of validation; JSON
    """

    train: Any
    validation: Any
    collator: PaddingFreeCollator | PaddedCollator
    statistics: Mapping[str, Any]
    notices: tuple[str, ...] = ()


def prepare_data(
    settings: Settings,
    tokenizer: Any,
    *,
    cache_dir: Path | None = None,
    digests: Digests | None = None,
    say: Callable[[str], None],
    beat: Callable[[], None],
    environ: Mapping[str, str] = os.environ,
) -> PreparedData:
    """Read, check, tokenise and mask the run's data. A second call finds what the first left.

    The config's chat template becomes the tokenizer's.

    :param cache_dir: where prepared rows are kept; prepared_data_dir, or else a directory in output_dir
    :param digests: of the files that the run is to read
    :param say: for people; only rank 0 says what all ranks know
    :param beat: a sign of life
    :raises SFTError: the config, the data or its place is wrong
    """
    values = settings.values
    located = locate_data(values, environ, digests)
    if digests:
        located.refuse_changed(digests)
    if template := choose_chat_template(settings, located.plan.chat_template, environ):
        tokenizer.chat_template = template
    speaks = environ.get("RANK", "0") == "0"
    job = PreparationJob(settings, tokenizer, located, say, beat)
    collator = choose_collator(
        settings, tokenizer, streaming=located.plan.streaming, say=say if speaks else _hush
    )
    if located.plan.streaming:
        prepared = _open_streams(job, located, collator, tokenizer)
    else:
        root = cache_dir or Path(values.get("prepared_data_dir") or Path(values["output_dir"], PREPARED_DIR))
        prepared = _prepare_once(job, root, collator, beat)
    _check_evaluation(settings, prepared)
    if speaks:
        _tell(prepared.statistics, say)
        if "dataset_num_proc" in settings.given:
            say("dataset_num_proc has no effect: rows are prepared on all cores that the container has.")
        if values.get("do_dataprocessing_only"):
            export_rows(job, root / job.key, settings, say)
    handlers = chain.from_iterable(spec.handlers or () for spec in located.plan.datasets)
    return replace(prepared, notices=tuple(describe_stray(handlers)))


def choose_collator(
    settings: Settings, tokenizer: Any, *, streaming: bool, say: Callable[[str], None]
) -> PaddingFreeCollator | PaddedCollator:
    """Batches without padding wherever the model allows it, which changes no number."""
    asked = settings.values.get("pad_to_multiple_of")
    multiple = asked if isinstance(asked, int) else 1  # "auto" means none on the accelerators there are
    padded = PaddedCollator(tokenizer.pad_token_id or 0, multiple)
    if streaming:
        return padded  # a stream's batches may be sliced over ranks, row by row
    why_padded = explain_padding(settings)
    if why_padded is None:
        return PaddingFreeCollator(tokenizer.pad_token_id or 0, multiple)
    if settings.values.get("packing") or settings.values.get("eval_packing"):
        raise ConfigError(f"packing is on, and {why_padded}: packed rows would see each other. Turn it off.")
    if settings.values.get("padding_free"):
        say(f"padding_free is on, and {why_padded}: batches are padded, which gives the same numbers.")
    return padded


def _prepare_once(
    job: PreparationJob, root: Path, collator: PaddingFreeCollator | PaddedCollator, beat: Callable[[], None]
) -> PreparedData:
    directory = prepare_once(root, job.key, job.build, beat)
    found = json.loads((directory / DONE_FILE).read_text(encoding="utf-8"))
    validation = found.pop("validation", None)
    train = job.load(directory, "train")
    statistics = (
        found["train"] | {"rows_an_epoch": len(train)} | ({"validation": validation} if validation else {})
    )
    return PreparedData(train, job.load(directory, "validation"), collator, statistics)


def _open_streams(
    job: PreparationJob, located: LocatedData, collator: PaddingFreeCollator | PaddedCollator, tokenizer: Any
) -> PreparedData:
    train, validation = (open_stream(job, located, role) for role in ("train", "validation"))
    statistics = look_at_stream(train, job, lambda ids: str(tokenizer.decode(ids)))
    return PreparedData(train, validation, collator, dict(statistics))


def _check_evaluation(settings: Settings, prepared: PreparedData) -> None:
    strategy = settings.values.get("eval_strategy") or "no"
    if strategy != "no" and prepared.validation is None:
        raise ConfigError(
            f"eval_strategy is {strategy!r}, and there is no data to evaluate on. Add validation_data_path, a split of "
            "data_config, or set it to 'no'."
        )


def _hush(_sentence: str) -> None:
    """Another rank says it."""


def _tell(statistics: Mapping[str, Any], say: Callable[[str], None]) -> None:
    for name, part in (("train", statistics), ("validation", statistics.get("validation"))):
        for sentence in describe_statistics(name, part) if part else ():
            say(sentence)
