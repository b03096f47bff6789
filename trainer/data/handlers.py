"""The data handlers of a data_config: what each does to rows, and the arguments it takes.

Handlers run in the order they stand. Those that tokenise say the format of the rows; what comes before them changes
columns, what comes after may leave long rows out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from airflow_provider_sft.contract.errors import ConfigError, DataError
from trainer.data.chat import ChatTemplate, TemplateFailedError, says_nothing
from trainer.data.chat_rows import ChatRows, find_conversation, nothing_rendered, read_messages
from trainer.data.handler_arguments import TOKEN_COLUMNS, Arguments, read_arguments, read_tokenizer_kwargs
from trainer.data.json_rows import Row
from trainer.data.keys import DataKeys
from trainer.data.plan import HandlerSpec
from trainer.data.row_format import RowFormat
from trainer.data.rows import RowChunk
from trainer.data.templates import RowTemplate
from trainer.data.text_rows import PairRows, TextRows, read_column

_AFTER_TOKENISING = frozenset(
    {
        "skip_samples_with_large_columns",
        "remove_columns",
        "select_columns",
        "rename_columns",
        "duplicate_columns",
    }
)

Drop = Callable[[str, str], None]
Step = Callable[[RowChunk, Drop], RowChunk]


@dataclass
class HandledRows:
    """What the handlers of a data set come to.

    :param steps: changes of rows, in order
    :param row_format: what they are then, where a handler says it
    :param max_length: a handler's own cut, in tokens
    :param longest: rows with more tokens than this are left out
    :param ended: columns whose texts end as a chat template ends them
    """

    steps: list[Step] = field(default_factory=list)
    row_format: RowFormat | None = None
    max_length: int | None = None
    longest: int | None = None
    ended: set[str] = field(default_factory=set)

    def run(self, chunks: Iterator[RowChunk], drop: Drop) -> Iterator[RowChunk]:
        """:param drop: hears why a row is left out, and which"""
        for chunk in chunks:
            for step in self.steps:
                chunk = step(chunk, drop)  # noqa: PLW2901  # a pipeline
            if chunk.rows:
                yield chunk


@dataclass(frozen=True)
class HandlerContext:
    """What handlers need besides their arguments."""

    tokenizer: Any
    keys: DataKeys
    eos: str


def build_handlers(specs: Sequence[HandlerSpec], first: RowChunk, context: HandlerContext) -> HandledRows:
    """
    :param first: rows as the files have them: each handler's columns are checked against its first row
    :raises ConfigError: an unknown handler, a wrong argument, a column that is not there
    """
    handled = HandledRows()
    sample = first.part(0, 1)
    for spec in specs:
        arguments, num_steps = read_arguments(spec), len(handled.steps)
        if handled.row_format is not None and spec.name not in _AFTER_TOKENISING:
            raise ConfigError(f"{arguments.key} comes after the rows are tokenised. Move it up.")
        _BUILDERS[spec.name](arguments, sample, handled, context)
        if len(handled.steps) > num_steps:
            changed = handled.steps[-1](sample, _ignore)
            sample = changed if changed.rows else sample
    return handled


def _add_map(handled: HandledRows, arguments: Arguments, change: Callable[[RowChunk, int], Row]) -> None:
    """A step that adds columns, and takes the former ones away as `remove_columns` says."""
    removed = arguments.options.get("remove_columns")

    def step(chunk: RowChunk, _drop: Drop) -> RowChunk:
        rows = []
        for index, row in enumerate(chunk.rows):
            kept = {} if removed == "all" else {k: v for k, v in row.items() if k not in (removed or ())}
            rows.append(kept | change(chunk, index))
        return replace(chunk, rows=rows)

    handled.steps.append(step)


def _tokenize(arguments: Arguments, sample: RowChunk, handled: HandledRows, context: HandlerContext) -> None:
    column = arguments.column("text_column_name", sample)
    template = context.keys.response_template
    trained = f"trained after {template!r}" if template else "trained whole"
    tokenizer_kwargs = read_tokenizer_kwargs(arguments)
    handled.row_format = TextRows(
        read_column(column, arguments.key),
        f"one text a row in {column!r}, {trained}",
        template,
        "",
        special_tokens=tokenizer_kwargs.special_tokens,
    )
    handled.max_length = tokenizer_kwargs.max_length


def _mask_input(
    arguments: Arguments, sample: RowChunk, handled: HandledRows, context: HandlerContext
) -> None:
    tokenizer_kwargs = read_tokenizer_kwargs(arguments)
    # A tokenizer that ends texts itself does so as one of its special tokens.
    eos = context.eos if tokenizer_kwargs.special_tokens else context.tokenizer.eos_token or ""
    handled.row_format = PairRows(
        arguments.column("input_column_name", sample),
        arguments.column("output_column_name", sample),
        eos if arguments.get("add_eos_token", True) else "",
        special_tokens=tokenizer_kwargs.special_tokens,
    )
    handled.max_length = tokenizer_kwargs.max_length


def _mask_chat(arguments: Arguments, sample: RowChunk, handled: HandledRows, context: HandlerContext) -> None:
    column = arguments.column("conversation_column", sample, default="messages")
    handled.row_format = ChatRows(ChatTemplate(context.tokenizer, column), column)
    handled.max_length = arguments.get("max_seq_length")


def _apply_template(
    arguments: Arguments, sample: RowChunk, handled: HandledRows, context: HandlerContext
) -> None:
    column = arguments.get("formatted_text_column_name")
    template = RowTemplate(
        f"{arguments.key}: template",
        arguments.get("template"),
        list(sample.rows[0]),
        context.tokenizer.special_tokens_map,
    )
    _add_map(handled, arguments, lambda chunk, index: {column: template.fill(chunk, index)})


def _apply_chat_template(
    arguments: Arguments, sample: RowChunk, handled: HandledRows, context: HandlerContext
) -> None:
    column = arguments.get("formatted_text_column_name")
    conversation = (
        arguments.column("conversation_column_name", sample)
        if arguments.get("conversation_column_name")
        else find_conversation(sample.rows[0], DataKeys())
    )
    template = ChatTemplate(context.tokenizer, conversation)
    if template.ends_itself:
        handled.ended.add(str(column))

    def change(chunk: RowChunk, index: int) -> Row:
        row = chunk.rows[index]
        extras = {key: row[key] for key in ("tools", "documents") if row.get(key)}
        messages = read_messages(chunk, index, conversation) if conversation else []
        try:
            text = template.render(messages, row=row, **extras)
        except TemplateFailedError as error:
            raise DataError(
                f"{chunk.where(index)}: the chat template refuses {conversation or 'the row'!r} ({error}). Correct the "
                "row, or the template."
            ) from error
        if says_nothing(text, messages or row):
            raise nothing_rendered(chunk, index)
        return {column: text}

    _add_map(handled, arguments, change)


def _duplicate(
    arguments: Arguments, sample: RowChunk, handled: HandledRows, _context: HandlerContext
) -> None:
    existing, new = arguments.get("existing_column_name"), arguments.get("new_column_name")
    tokenised = handled.row_format is not None
    arguments.check_columns("existing_column_name", [existing], sample, tokenised=tokenised)
    if tokenised and (existing, new) == ("input_ids", "labels"):
        # fms-hf-tuning's recipe for training whole texts, which is what `tokenize` without a template means here.
        _train_whole(arguments, handled)
        return
    if tokenised and existing in TOKEN_COLUMNS:
        raise ConfigError(
            f"{arguments.key} copies {existing!r} to {new!r}. After tokenising, only a copy of 'input_ids' to 'labels' has "
            "a meaning. Drop the handler."
        )
    if new in sample.rows[0]:
        raise ConfigError(
            f"{arguments.key}.new_column_name is {new!r}, which the rows have already. Take another."
        )

    def change(chunk: RowChunk, index: int) -> Row:
        return {name: chunk.rows[index].get(existing) for name in (existing, new)}

    _add_map(handled, arguments, change)


def _train_whole(arguments: Arguments, handled: HandledRows) -> None:
    """Labels that are a copy of the tokens train every token."""
    if not isinstance(handled.row_format, TextRows):
        raise ConfigError(
            f"{arguments.key} copies 'input_ids' to 'labels', which the handler before has made already. Drop the handler."
        )
    if handled.row_format.response_template is not None:
        raise ConfigError(
            f"{arguments.key} trains whole texts, and response_template is {handled.row_format.response_template!r}. "
            "Drop one of them."
        )


def _skip_large(
    arguments: Arguments, sample: RowChunk, handled: HandledRows, _context: HandlerContext
) -> None:
    column, longest = arguments.get("column_name"), arguments.get("max_allowed_length")
    if handled.row_format is not None:
        if column not in ("input_ids", "labels", "attention_mask"):
            raise ConfigError(
                f"{arguments.key}.column_name is {column!r}. After tokenising, expected 'input_ids'."
            )
        handled.longest = min(longest, handled.longest or longest)
        return
    arguments.column("column_name", sample)
    reason = f"{column!r} is longer than {longest:,}"

    def step(chunk: RowChunk, drop: Drop) -> RowChunk:
        kept = []
        for index, row in enumerate(chunk.rows):
            if not isinstance(row.get(column), str | list):
                raise DataError(f"{chunk.where(index)}: {column!r} has no length. Expected a text or a list.")
            if len(row[column]) <= longest:
                kept.append(index)
            else:
                drop(reason, chunk.where(index))
        return replace(
            chunk,
            rows=[chunk.rows[index] for index in kept],
            numbers=[chunk.numbers[index] for index in kept],
        )

    handled.steps.append(step)


def _remove(arguments: Arguments, sample: RowChunk, handled: HandledRows, _context: HandlerContext) -> None:
    names = set(arguments.columns("column_names", sample, tokenised=handled.row_format is not None))
    _add_selection(handled, lambda row: {key: value for key, value in row.items() if key not in names})


def _select(arguments: Arguments, sample: RowChunk, handled: HandledRows, _context: HandlerContext) -> None:
    names = arguments.columns("column_names", sample, tokenised=handled.row_format is not None)
    _add_selection(handled, lambda row: {key: row[key] for key in names if key in row})


def _rename(arguments: Arguments, sample: RowChunk, handled: HandledRows, _context: HandlerContext) -> None:
    mapping: Mapping[str, str] = arguments.get("column_mapping")
    arguments.check_columns("column_mapping", list(mapping), sample, tokenised=handled.row_format is not None)
    _add_selection(handled, lambda row: {mapping.get(key, key): value for key, value in row.items()})


def _add_selection(handled: HandledRows, change: Callable[[Row], Row]) -> None:
    if handled.row_format is None:  # afterwards, only the tokens are left
        handled.steps.append(lambda chunk, _drop: replace(chunk, rows=[change(row) for row in chunk.rows]))


def _ignore(_reason: str, _where: str) -> None:
    """For rows that only show what columns there are."""


_BUILDERS: dict[str, Callable[[Arguments, RowChunk, HandledRows, HandlerContext], None]] = {
    "tokenize": _tokenize,
    "tokenize_and_apply_input_masking": _mask_input,
    "tokenize_and_apply_chat_template_with_masking": _mask_chat,
    "apply_custom_jinja_template": _apply_template,
    "apply_tokenizer_chat_template": _apply_chat_template,
    "duplicate_columns": _duplicate,
    "skip_samples_with_large_columns": _skip_large,
    "remove_columns": _remove,
    "select_columns": _select,
    "rename_columns": _rename,
}
