"""The arguments of each data handler: names, kinds, and which must be there. A wrong one is a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_sft.contract.errors import ConfigError
from trainer.data.checks import check_keys, show, suggest, take
from trainer.data.plan import HandlerSpec
from trainer.data.rows import RowChunk

TOKEN_COLUMNS = ("input_ids", "labels", "attention_mask")


@dataclass(frozen=True)
class _Shape:
    """:param required, optional: names and kinds of the handler's own arguments
    :param batches: whether `batched: true` is possible
    :param plain: the arguments stand beside the options, not under fn_kwargs
    """

    required: Mapping[str, type]
    optional: Mapping[str, type]
    batches: bool = False
    plain: bool = False


_SHAPES = {
    "tokenize": _Shape(
        {"text_column_name": str},
        {"truncation": object, "max_length": int, "tokenizer_kwargs": dict},
        batches=True,
    ),
    "tokenize_and_apply_input_masking": _Shape(
        {"input_column_name": str, "output_column_name": str},
        {"add_eos_token": bool, "tokenizer_kwargs": dict},
    ),
    "tokenize_and_apply_chat_template_with_masking": _Shape(
        {}, {"max_seq_length": int, "conversation_column": str}
    ),
    "apply_custom_jinja_template": _Shape({"formatted_text_column_name": str, "template": str}, {}),
    "apply_tokenizer_chat_template": _Shape(
        {"formatted_text_column_name": str}, {"conversation_column_name": str}
    ),
    "duplicate_columns": _Shape({"existing_column_name": str, "new_column_name": str}, {}, batches=True),
    "skip_samples_with_large_columns": _Shape({"column_name": str, "max_allowed_length": int}, {}),
    "remove_columns": _Shape({"column_names": list}, {}, plain=True),
    "select_columns": _Shape({"column_names": list}, {}, plain=True),
    "rename_columns": _Shape({"column_mapping": dict}, {}, plain=True),
}
# What `datasets.map` takes beside them; the rows come out the same whatever these say, but for remove_columns.
_OPTIONS = (
    "remove_columns",
    "batched",
    "batch_size",
    "num_proc",
    "desc",
    "load_from_cache_file",
    "keep_in_memory",
)


_FN_KWARGS = {
    name for shape in _SHAPES.values() if not shape.plain for name in (*shape.required, *shape.optional)
}


@dataclass(frozen=True)
class TokenizerKwargs:
    """:param max_length: where rows are cut, None where they are not"""

    special_tokens: bool
    max_length: int | None


@dataclass(frozen=True)
class Arguments:
    """Checked arguments of one handler.

    :param key: where they stand
    """

    key: str
    own: Mapping[str, Any]
    options: Mapping[str, Any]

    def get(self, name: str, default: Any = None) -> Any:
        return self.own.get(name, default)

    def column(self, name: str, sample: RowChunk, default: str | None = None) -> str:
        """The column an argument names.

        :raises ConfigError: the rows have none of that name
        """
        column = self.own.get(name, default)
        self.check_columns(name, [column], sample)
        return str(column)

    def columns(self, name: str, sample: RowChunk, *, tokenised: bool = False) -> list[str]:
        columns: list[str] = self.own[name]
        self.check_columns(name, columns, sample, tokenised=tokenised)
        return columns

    def check_columns(
        self, name: str, columns: Sequence[Any], sample: RowChunk, *, tokenised: bool = False
    ) -> None:
        known = [*sample.rows[0], *(TOKEN_COLUMNS if tokenised else ())]
        for column in columns:
            if column not in known:
                raise ConfigError(
                    f"{self.key}.{name} is {column!r}, and the rows lack it. {suggest(str(column), known)}"
                )


def read_arguments(spec: HandlerSpec) -> Arguments:
    """:raises ConfigError: an unknown handler, or a wrong argument, with the nearest right one"""
    if spec.name == "prepare_multimodal_data_processor":
        raise ConfigError(f"{spec.key} is {spec.name!r}, and only text is trained here. Take it out.")
    shape = _SHAPES.get(spec.name)
    if shape is None:
        raise ConfigError(f"{spec.key} is the unknown handler {spec.name!r}. {suggest(spec.name, _SHAPES)}")
    key = f"{spec.key} ({spec.name})"
    names = (*shape.required, *shape.optional)
    check_keys(spec.arguments, (*_OPTIONS, *(names if shape.plain else ("fn_kwargs",))), key)
    own = spec.arguments if shape.plain else take(spec.arguments, "fn_kwargs", dict, {}, key)
    if not shape.plain:
        stray = find_stray(spec)
        check_keys({name: own[name] for name in own if name not in stray}, names, f"{key}.fn_kwargs")
    _check_options(spec.arguments, shape, key)
    return Arguments(key, _read_own(own, shape, key), spec.arguments)


def find_stray(spec: HandlerSpec) -> list[str]:
    """The fn_kwargs that another handler reads and this one does not: fms-hf-tuning passes over them."""
    shape, own = _SHAPES.get(spec.name), spec.arguments.get("fn_kwargs")
    if shape is None or shape.plain or not isinstance(own, dict):
        return []
    return [name for name in own if name in _FN_KWARGS - {*shape.required, *shape.optional}]


def describe_stray(specs: Iterable[HandlerSpec]) -> Iterator[str]:
    for spec in specs:
        for name in find_stray(spec):
            yield f"{spec.key}: {name!r} has no effect, because {spec.name!r} does not read it. Drop it."


def read_tokenizer_kwargs(arguments: Arguments) -> TokenizerKwargs:
    """:raises ConfigError: another than the three, or one that stands beside tokenizer_kwargs too"""
    key = f"{arguments.key}.fn_kwargs.tokenizer_kwargs"
    given = arguments.get("tokenizer_kwargs", {})
    check_keys(given, ("add_special_tokens", "max_length", "truncation"), key)
    for name in given:
        if name in arguments.own:
            raise ConfigError(f"{arguments.key} has {name!r} in fn_kwargs and in tokenizer_kwargs. Keep one.")
    max_length = take(given, "max_length", int, arguments.get("max_length"), key)
    if max_length is not None and max_length < 1:
        raise ConfigError(f"{key}.max_length is {max_length}. Expected 1 or more.")
    truncates = take(given, "truncation", bool, arguments.get("truncation", True), key)
    return TokenizerKwargs(
        take(given, "add_special_tokens", bool, True, key), max_length if truncates else None
    )


def _read_own(own: Mapping[str, Any], shape: _Shape, key: str) -> dict[str, Any]:
    found = {}
    for name, kind in {**shape.required, **shape.optional}.items():
        value = take(own, name, kind, None, key)
        if value is None and name in shape.required:
            raise ConfigError(f"{key} lacks {name!r}. Add it.")
        if kind is int and value is not None and value < 1:
            raise ConfigError(f"{key}.{name} is {value}. Expected 1 or more.")
        if value is not None:
            found[name] = value
    return found


def _check_options(options: Mapping[str, Any], shape: _Shape, key: str) -> None:
    if take(options, "batched", bool, False, key) and not shape.batches:
        raise ConfigError(f"{key}.batched is true, and this handler takes a row at a time. Set it to false.")
    removed = options.get("remove_columns")
    if removed not in (None, "all") and not (
        isinstance(removed, list) and all(isinstance(x, str) for x in removed)
    ):
        raise ConfigError(f"{key}.remove_columns is {show(removed)}. Expected 'all' or a list of columns.")
