"""What an adapter changed in the vocabulary: rows of added tokens, trained rows of existing ones.

A row is a `TensorEntry`: a byte range of the adapter or of the base model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from airflow_provider_sft.contract.adapter_files import TensorEntry
from airflow_provider_sft.contract.adapter_layout import Role
from airflow_provider_sft.contract.errors import ExportError
from trainer.export.numbers import encode_array, read_array
from trainer.export.source import Source
from trainer.export.tensors import slice_rows

SIDES = ("input", "output")
NEW_EMBEDDINGS_KEYS = {"input": "input_embeddings", "output": "output_embeddings"}

_BLOCK_BYTES = 32 << 20


@dataclass(frozen=True)
class Embedding:
    """One of the two vocabulary matrices, as far as the adapter holds it."""

    module: str
    matrix: TensorEntry | None = None  # every row, as saved
    is_trained: bool = False  # any row of `matrix` may have been trained (modules_to_save)
    is_frozen_copy: bool = False  # `matrix` is the base's, resized or not
    rows: dict[int, TensorEntry] = field(default_factory=dict)  # trained rows by token id
    new_rows: TensorEntry | None = None  # what an earlier export moved to new_embeddings.safetensors

    def row(self, token: int) -> TensorEntry | None:
        if token in self.rows:
            return self.rows[token]
        return slice_rows(self.matrix, token, token + 1) if self.matrix else None


@dataclass(frozen=True)
class Vocabulary:
    """`size` counts the rows of the tuned model, `num_new` how many of them, the last, the base lacks."""

    size: int | None
    num_new: int
    embeddings: dict[str, Embedding]

    def new_rows(self, side: str) -> list[TensorEntry]:
        """The rows of the added tokens, or none where the adapter has nothing for this side."""
        embedding = self.embeddings.get(side)
        if embedding is None or not self.num_new:
            return []
        if embedding.new_rows is not None:
            return [embedding.new_rows]
        rows = [embedding.row(token) for token in self.new_ids]
        return [row for row in rows if row is not None] if None not in rows else []

    @property
    def new_ids(self) -> range:
        return range((self.size or 0) - self.num_new, self.size or 0)


def read_vocabulary(source: Source) -> Vocabulary:
    """:raises ExportError: the count of added tokens does not fit what is saved, or rows are missing"""
    embeddings = {side: embedding for side in SIDES if (embedding := _read_embedding(source, side))}
    if (tied := _tied_output(source, embeddings)) is not None:
        embeddings["output"] = tied
    vocabulary = Vocabulary(_size(source, embeddings), source.num_new_tokens, embeddings)
    _check_count(source, vocabulary)
    return vocabulary


def _read_embedding(source: Source, side: str) -> Embedding | None:
    module = source.embedding_module(side)
    moved = source.new_embeddings.tensors.get(NEW_EMBEDDINGS_KEYS[side])
    if module is None:
        return Embedding(_base_module(source, side), new_rows=moved) if moved else None
    whole, frozen = source.get(module, Role.WHOLE), source.get(module, Role.FROZEN)
    return Embedding(
        module=module,
        matrix=whole or frozen,
        is_trained=_may_be_trained(source, module, whole),
        is_frozen_copy=whole is None,
        rows=_read_rows(source, module),
        new_rows=moved,
    )


def _may_be_trained(source: Source, module: str, whole: TensorEntry | None) -> bool:
    """A whole matrix without added tokens is there because it was tuned, or because somebody asked for it."""
    if whole is not None and not source.num_new_tokens:
        return True
    saved = source.config.get("modules_to_save") or []
    return any(module == name or module.endswith(f".{name}") for name in saved)


def _base_module(source: Source, side: str) -> str:
    name = source.base.embedding_name(side) if source.base else None
    return (name or f"{side}_embedding").removesuffix(".weight")


def _read_rows(source: Source, module: str) -> dict[int, TensorEntry]:
    block = source.get(module, Role.ROWS)
    if block is None:
        return {}
    tokens = _trained_tokens(source, module)
    if len(tokens) != block.shape[0]:
        raise ExportError(
            f"{source.directory}: {module!r} holds {block.shape[0]} trained rows, and trainable_token_indices "
            f"names {len(tokens)}. Save the adapter again."
        )
    return {token: slice_rows(block, index, index + 1) for index, token in enumerate(tokens)}


def _trained_tokens(source: Source, module: str) -> list[int]:
    """In the order of the saved rows."""
    tokens = source.config.get("trainable_token_indices") or []
    if isinstance(tokens, dict):
        named = (ids for name, ids in tokens.items() if module == name or module.endswith(f".{name}"))
        tied: list[int] = next(
            iter(tokens.values()), []
        )  # PEFT has a tied output follow the one that is named
        return list(next(named, tied))
    return list(tokens)


def _tied_output(source: Source, embeddings: dict[str, Embedding]) -> Embedding | None:
    """Rows trained on a tied embedding are the output's too; PEFT saves them once."""
    known = embeddings.get("input")
    if known is None or not known.rows or "output" in embeddings:
        return None
    if source.base is None or not source.base.is_tied:
        return None
    return Embedding("lm_head", matrix=known.matrix, is_frozen_copy=True, rows=known.rows)


def _size(source: Source, embeddings: dict[str, Embedding]) -> int | None:
    sizes = {embedding.matrix.shape[0] for embedding in embeddings.values() if embedding.matrix}
    sizes |= {module.a.shape[1] for module in source.lora_modules if module.is_embedding}
    if len(sizes) > 1:
        raise ExportError(
            f"{source.directory}: the embeddings have {sorted(sizes)} rows. Save the adapter again."
        )
    if sizes:
        return sizes.pop()
    known = source.base.vocabulary if source.base else None
    return None if known is None else known + source.num_new_tokens


def _check_count(source: Source, vocabulary: Vocabulary) -> None:
    num_new, size = vocabulary.num_new, vocabulary.size
    known = source.base.vocabulary if source.base else None
    if size is not None and known is not None and size not in (known, known + num_new):
        raise ExportError(
            f"num_new_tokens is {num_new}, and the vocabulary grew from {known} to {size} rows. "
            f"Give {size - known}, the rows by which it grew."
        )
    if num_new and known is not None and size == known:
        _check_nothing_grew(vocabulary)
    if num_new and not any(vocabulary.new_rows(side) for side in SIDES):
        raise ExportError(_missing_rows(source, num_new))
    for side, embedding in vocabulary.embeddings.items():
        moved = embedding.new_rows
        found = moved.shape[0] if moved else sum(row.shape[0] for row in vocabulary.new_rows(side))
        if found not in (0, num_new):
            raise ExportError(
                f"num_new_tokens is {num_new}, and {source.directory} holds {found} rows of added tokens. "
                f"Give {found}."
            )


def _check_nothing_grew(vocabulary: Vocabulary) -> None:
    if any(embedding.matrix for embedding in vocabulary.embeddings.values()):
        raise ExportError(
            f"num_new_tokens is {vocabulary.num_new}, and the vocabulary of the base already has "
            f"{vocabulary.size} rows. Give 0: a row of an existing token is never overwritten."
        )


def _missing_rows(source: Source, num_new: int) -> str:
    return (
        f"{source.directory} holds no rows for the {num_new} added tokens: neither embed_tokens nor lm_head was "
        "saved whole. Save the adapter again with save_embedding_layers=True (PEFT's 'auto' skips them when it "
        "does not find the base model's config.json)."
    )


def changed_rows(source: Source, vocabulary: Vocabulary, side: str) -> dict[int, TensorEntry]:
    """The trained rows of existing tokens, by token id.

    :raises ExportError: the base model's weights are needed to tell, and were not found
    """
    embedding = vocabulary.embeddings.get(side)
    if embedding is None:
        return {}
    first_new = (vocabulary.size or 0) - vocabulary.num_new
    rows = {token: row for token, row in embedding.rows.items() if token < first_new}
    if embedding.is_trained and embedding.matrix is not None:
        base = base_embedding(source, side)
        rows |= {
            token: slice_rows(embedding.matrix, token, token + 1)
            for token in _differing(embedding.matrix, base)
        }
    return rows


def base_embedding(source: Source, side: str) -> TensorEntry:
    """The base model's matrix; the input embedding where the output is tied to it.

    :raises ExportError: not found
    """
    if source.base is None:
        raise ExportError(
            f"The base model {source.config.get('base_model_name_or_path')!r} of {source.directory} was not found, "
            "and its embedding is needed. Give its directory with --base."
        )
    name = source.base.embedding_name(side) or source.base.embedding_name("input")
    if name is None:
        raise ExportError(f"The base model {source.base.directory} has no embedding that this export knows.")
    return source.base.tensors[name]


def _differing(matrix: TensorEntry, base: TensorEntry) -> Iterator[int]:
    """The ids whose row is not the base's, once the base is rounded to the adapter's type."""
    shared = min(matrix.shape[0], base.shape[0])
    row_bytes = max((matrix.end - matrix.begin) // max(matrix.shape[0], 1), 1)
    step = max(_BLOCK_BYTES // row_bytes, 1)
    for start in range(0, shared, step):
        stop = min(start + step, shared)
        ours = encode_array(read_array(matrix, start, stop), matrix.dtype)
        theirs = encode_array(read_array(base, start, stop), matrix.dtype)
        if ours != theirs:
            for index in range(stop - start):
                span = slice(index * row_bytes, (index + 1) * row_bytes)
                if ours[span] != theirs[span]:
                    yield start + index
