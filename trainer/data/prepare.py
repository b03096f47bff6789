"""The data of a run, ready to train on: what `train` asks for. Read this first; the other modules are its steps.

locate → choose the format → tokenise and mask (cached) → mix → pack → collate
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import tokenizers

from airflow_provider_sft.contract.errors import ConfigError, DataError
from airflow_provider_sft.contract.settings import Settings
from trainer.attention import explain_padding
from trainer.data.batching import PaddedCollator, PaddingFreeCollator
from trainer.data.cache import DONE_FILE, prepare_once
from trainer.data.encode import Encoder, choose_ending, choose_max_length
from trainer.data.files import DataSource, LocatedData, locate_data
from trainer.data.formats import choose_format
from trainer.data.plan import DatasetSpec
from trainer.data.rows import RowChunk, read_chunks
from trainer.data.statistics import DataStatistics
from trainer.data.tokenise import Tokeniser
from trainer.files import digest_json, write_json

# Raised when the same rows would come out otherwise.
CODE_VERSION = 1
# What the rows depend on, of the config.
_KEYS = (
    "dataset_text_field", "dataset_conversation_field", "response_template", "instruction_template",
    "data_formatter_template", "truncation_mode", "packing", "packing_strategy", "eval_packing", "shuffle_dataset",
    "assistant_only_loss", "completion_only_loss",
)  # fmt: skip


@dataclass(frozen=True)
class PreparedData:
    """
    :param collator: rows to a batch for the model
    :param statistics: of the training rows, with those of validation under `validation`; JSON
    """

    train: Any
    validation: Any
    collator: Any
    statistics: Mapping[str, Any]


def prepare_data(
    settings: Settings,
    tokenizer: Any,
    *,
    cache_dir: Path | None = None,
    say: Callable[[str], None],
    beat: Callable[[], None],
    environ: Mapping[str, str] = os.environ,
) -> PreparedData:
    """Read, check, tokenise and mask the run's data, once a node; a second call reads what the first left.

    :param cache_dir: where prepared rows are kept; prepared_data_dir, or else a directory in output_dir
    :param say: for people; rank 0 alone should be heard
    :param beat: a sign of life
    :raises SFTError: the config, the data or its place is wrong
    """
    values = settings.values
    located = locate_data(values, environ)
    root = cache_dir or Path(values.get("prepared_data_dir") or Path(values["output_dir"]) / ".sft.prepared")
    job = PreparationJob(settings, tokenizer, located, say, beat)
    directory = prepare_once(root, job.key, job.build, beat)
    statistics = {
        name: DataStatistics.from_json(value) for name, value in _read(directory / DONE_FILE).items()
    }
    if environ.get("RANK", "0") == "0":
        for name, part in statistics.items():
            for sentence in part.sentences(name):
                say(sentence)
    train, validation = (
        _load(directory, name) if name in statistics else None for name in ("train", "validation")
    )
    whole = statistics["train"].as_json()
    if "validation" in statistics:
        whole["validation"] = statistics["validation"].as_json()
    return PreparedData(train, validation, choose_collator(settings, tokenizer, say), whole)


def choose_collator(
    settings: Settings, tokenizer: Any, say: Callable[[str], None]
) -> PaddingFreeCollator | PaddedCollator:
    """Without padding wherever the model allows it, which changes no number."""
    why_padded = explain_padding(settings)
    if why_padded is None:
        return PaddingFreeCollator()
    if settings.values.get("packing"):
        raise ConfigError(
            f"packing is on, and {why_padded}, so packed rows would see each other. Turn packing off."
        )
    if settings.values.get("padding_free"):
        say(f"padding_free is set, and {why_padded}: batches are padded, which gives the same numbers.")
    return PaddedCollator(tokenizer.pad_token_id or 0, settings.values.get("pad_to_multiple_of"))


class PreparationJob:
    """What is made in the cache, and the digest of all it depends on."""

    def __init__(
        self,
        settings: Settings,
        tokenizer: Any,
        located: LocatedData,
        say: Callable[[str], None],
        beat: Callable[[], None],
    ) -> None:
        self._values, self._tokenizer, self._located = settings.values, tokenizer, located
        self._max_length = choose_max_length(tokenizer, settings.values.get("max_length"))
        self._ending = choose_ending(tokenizer)
        encoder = Encoder(
            tokenizer,
            self._max_length,
            self._ending,
            keep_end=settings.values.get("truncation_mode") == "keep_end",
        )
        self._tokeniser = Tokeniser(
            encoder, lambda ids: str(tokenizer.decode(ids)), len(tokenizer), self._max_length, say, beat
        )

    @property
    def key(self) -> str:
        return digest_json(
            {
                "code": [CODE_VERSION, tokenizers.__version__],
                "data": [self._located.plan.as_json(), *(source.sha256 for source in self._located.sources)],
                "config": {key: self._values.get(key) for key in _KEYS} | {"max_length": self._max_length},
                "tokenizer": [
                    self._tokenizer.backend_tokenizer.to_str(),
                    str(self._tokenizer.chat_template),
                    dict(self._tokenizer.special_tokens_map),
                ],
            }
        )[:32]

    def build(self, directory: Path) -> None:
        found: dict[str, DataStatistics] = {}
        for spec, source in zip(self._located.plan.datasets, self._located.sources, strict=True):
            name = "train" if spec.train else "validation"
            found[name] = self._tokenise(spec, source, directory / f"{name}.arrow")
        write_json(directory / DONE_FILE, {name: statistics.as_json() for name, statistics in found.items()})

    def _tokenise(self, spec: DatasetSpec, source: DataSource, path: Path) -> DataStatistics:
        chunks = _all_chunks(source)
        first = next(chunks, None)
        label = ", ".join(str(file) for file in source.files) or str(source.hub_id)
        if first is None:
            raise DataError(f"{label} ({spec.key}) holds no rows. Give at least one.")
        sample = first.rows[0]
        row_format = choose_format(list(sample), sample, self._values, self._tokenizer, self._ending.text)
        return self._tokeniser.write(label, chain([first], chunks), row_format, path)


def _all_chunks(source: DataSource) -> Iterator[RowChunk]:
    for path in source.files:
        yield from read_chunks(path)


def _load(directory: Path, name: str) -> datasets.Dataset:
    return datasets.Dataset.from_file(str(directory / f"{name}.arrow")).with_format("numpy")


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
