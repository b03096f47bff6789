"""What is prepared, and the digest of everything it depends on: the cache's content and its key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import tokenizers
import transformers

from airflow_provider_sft.contract.errors import DataError
from airflow_provider_sft.contract.settings import Settings
from trainer.data.cache import DONE_FILE
from trainer.data.dropped import DropLog
from trainer.data.encode import Encoder, choose_ending, choose_max_length
from trainer.data.files import DataSource, LocatedData
from trainer.data.formats import choose_format
from trainer.data.handlers import HandledRows, HandlerContext, build_handlers
from trainer.data.keys import DataKeys, read_keys
from trainer.data.mixing import ROLES, mix_rows, split_rows
from trainer.data.packing import write_packs
from trainer.data.plan import DatasetSpec
from trainer.data.row_format import Pretokenised, RowFormat
from trainer.data.rows import RowChunk, RowPlace, read_source
from trainer.data.statistics import Statistics, summarise
from trainer.data.store import load_rows, open_writer
from trainer.data.tokenise import ProgressTeller, Tokeniser
from trainer.files import digest_json, write_json

# Raised when the same rows would come out otherwise.
CODE_VERSION = 4
# These packings make several documents of a row that is too long, instead of cutting it.
_SPLITTING = ("bfd_split", "wrapped")


@dataclass(frozen=True)
class RowPipeline:
    """How the rows of one data set become tokens."""

    chunks: Iterator[RowChunk]
    row_format: RowFormat | Pretokenised
    tokeniser: Tokeniser


class PreparationJob:
    """
    :param say: for people
    :param beat: a sign of life
    """

    def __init__(
        self,
        settings: Settings,
        tokenizer: Any,
        located: LocatedData,
        say: Callable[[str], None],
        beat: Callable[[], None],
    ) -> None:
        self._values, self._tokenizer, self._located = settings.values, tokenizer, located
        self._say, self._beat = say, beat
        self.keys: DataKeys = read_keys(settings)
        self.max_length = choose_max_length(tokenizer, settings.values.get("max_length"))
        self._ending = choose_ending(tokenizer)

    @property
    def key(self) -> str:
        """The digest of all that the prepared rows depend on."""
        return digest_json(
            {
                "code": [CODE_VERSION, tokenizers.__version__, transformers.__version__],
                "data": [self._located.plan.as_json(), *(source.sha256 for source in self._located.sources)],
                "keys": repr(self.keys),
                "max_length": self.max_length,
                "truncation_mode": self._values.get("truncation_mode"),
                "packing": {role: self._packing(role) for role in ROLES},
                "shuffle": self.shuffle_seed,
                "tokenizer": [
                    self._tokenizer.backend_tokenizer.to_str(),
                    str(self._tokenizer.chat_template),
                    {name: str(token) for name, token in self._tokenizer.special_tokens_map.items()},
                ],
            }
        )[:32]

    @property
    def shuffle_seed(self) -> int | None:
        """Set where the rows are shuffled before they are packed or trained on."""
        return int(self._values.get("seed") or 0) if self._values.get("shuffle_dataset") else None

    def build(self, directory: Path) -> None:
        """Fill `directory`: `<number>.<role>.arrow` for each data set, `<role>.packed.arrow`, and the statistics."""
        parts: dict[str, list[Path]] = {role: [] for role in ROLES}
        formats: dict[str, list[str]] = {role: [] for role in ROLES}
        drops: dict[str, list[DropLog]] = {role: [] for role in ROLES}
        plan = self._located.plan
        for number, (spec, source) in enumerate(zip(plan.datasets, self._located.sources, strict=True)):
            path = directory / f"{number:03}.arrow"
            row_format, dropped = self._write(spec, source, path)
            for role, part in split_rows(path, spec, str(source), plan.seed).items():
                parts[role].append(part)
                formats[role].append(row_format)
                drops[role].append(dropped)
        found = {
            role: self._summarise(role, parts[role], formats[role], drops[role])
            for role in ROLES
            if parts[role]
        }
        for role in found:
            if strategy := self._packing(role):
                self._pack(directory, role, strategy)
        write_json(directory / DONE_FILE, found)

    def load(self, directory: Path, role: str) -> Any:
        """The prepared rows of a role, or None where there are none."""
        packed = directory / f"{role}.packed.arrow"
        return load_rows([packed]) if packed.exists() else self.load_unpacked(directory, role)

    def load_unpacked(self, directory: Path, role: str) -> Any:
        paths = sorted(directory.glob(f"*.{role}.arrow"))
        if not paths:
            return None
        specs = self._located.plan.datasets
        weights = [specs[int(path.name.split(".")[0])].sampling or 0.0 for path in paths]
        parts = [load_rows([path]) for path in paths]
        rows = mix_rows(parts, weights if role == "train" else [], self._located.plan)
        if role == "train" and self.shuffle_seed is not None:
            rows = rows.shuffle(seed=self.shuffle_seed)
        return rows

    def open_pipeline(
        self,
        spec: DatasetSpec,
        source: DataSource,
        *,
        streaming: bool = False,
        start: RowPlace | None = None,
    ) -> RowPipeline:
        """
        :param start: where the rows begin; what they are is told by the first ones of all the same
        :raises DataError: no rows, or rows of no format
        """
        chunks = read_source(source, split=spec.split_name, streaming=streaming)
        first = next(chunks, None)
        if first is None:
            raise DataError(f"{source} ({spec.key}) holds no rows. Give at least one.")
        context = HandlerContext(self._tokenizer, self.keys, self._ending.text)
        handled = build_handlers(spec.handlers or (), first, context)
        dropped = DropLog()
        rows = handled.run(chain([first], chunks), dropped.add)
        row_format: RowFormat | Pretokenised | None = handled.row_format
        if row_format is None:
            first = next(rows, None)
            if first is None:
                raise DataError(f"{source} ({spec.key}): the data handlers leave out every row.")
            eos = "" if self.keys.text_column in handled.ended else self._ending.text
            row_format = choose_format(first, self.keys, self._tokenizer, eos)
            rows = chain([first], rows)
        if start is not None:
            rows = handled.run(read_source(source, start=start), dropped.add)
        return RowPipeline(rows, row_format, self._tokeniser(spec, handled, dropped))

    def _tokeniser(self, spec: DatasetSpec, handled: HandledRows, dropped: DropLog) -> Tokeniser:
        shares = {"train": spec.train, "validation": spec.validation}
        splits = all(self._packing(role) in _SPLITTING for role in ROLES if shares[role])
        limit = min(self.max_length, handled.max_length or self.max_length)
        encoder = Encoder(
            self._tokenizer,
            None if splits else limit,
            self._ending,
            keep_end=self._values.get("truncation_mode") == "keep_end",
        )
        return Tokeniser(encoder, len(self._tokenizer), limit, handled.longest, self._ending.text, dropped)

    def _write(self, spec: DatasetSpec, source: DataSource, path: Path) -> tuple[str, DropLog]:
        pipeline = self.open_pipeline(spec, source)
        progress, rows = ProgressTeller(str(source), self._say, self._beat), 0
        with open_writer(path) as writer:
            for _, encoded, kept in pipeline.tokeniser.tokenise(pipeline.chunks, pipeline.row_format):
                batch = encoded.batch()
                writer.write_batch(batch if kept.all() else batch.filter(pa.array(kept)))
                rows += int(kept.sum())
                progress.add(len(kept))
        dropped = pipeline.tokeniser.dropped
        if not rows:
            raise DataError(_nothing_left(str(source), dropped))
        return pipeline.row_format.description, dropped

    def _summarise(
        self, role: str, paths: list[Path], formats: list[str], drops: list[DropLog]
    ) -> Statistics:
        return summarise(
            paths,
            formats=formats,
            dropped=[entry for drop in drops for entry in drop.found.values()],
            unanswered=[entry for drop in drops for entry in drop.unanswered.values()],
            max_length=self.max_length,
            decode=lambda ids: str(self._tokenizer.decode(ids)),
        )

    def _pack(self, directory: Path, role: str, strategy: str) -> None:
        rows = self.load_unpacked(directory, role)
        path = directory / f"{role}.packed.arrow"
        packs = write_packs(rows, path, length=self.max_length, strategy=strategy)
        self._say(f"{role}: {len(rows):,} rows in {packs:,} packs of up to {self.max_length:,} tokens.")

    def _packing(self, role: str) -> str | None:
        """The strategy, where rows of this role are packed."""
        packing = self._values.get("packing")
        if role == "validation" and self._values.get("eval_packing") is not None:
            packing = self._values["eval_packing"]
        return str(self._values.get("packing_strategy") or "bfd") if packing else None


def _nothing_left(label: str, dropped: DropLog) -> str:
    most = max(dropped.found.values(), key=lambda entry: entry["count"], default=None)
    if most is None:
        return f"{label} holds no rows. Give at least one."
    first = ", ".join(most["first"][:3])
    more = ", …" if most["count"] > 3 else ""  # noqa: PLR2004
    return (
        f"{label}: none of {dropped.count:,} rows has a token to train, because {most['reason']}: {first}{more}. "
        "Correct the config's keys, or the data."
    )
