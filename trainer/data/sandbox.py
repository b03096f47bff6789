"""Limits of time, memory and output for templates, which are foreign code.

jinja's sandbox keeps a template from reading and changing what it should not. What it lacks is added here: what runs in
Python is ended by a timer, and what runs in C, which no timer can end, is measured before it starts.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from trainer.data.time_limit import LimitError, limited_time

MAX_CHARS = 1 << 25
_MAX_ITEMS = 1 << 18
_MAX_INT_BITS = 1 << 14
_MAX_DEPTH = 100
_LONG_NUMBER = re.compile(r"\d{7}")
# Filters and methods by how their result can outgrow their arguments. The rest gives no more than it gets.
_PADS = frozenset(
    {"center", "ljust", "rjust", "zfill", "to_bytes", "round", "batch", "slice", "truncate", "lipsum"}
)
_INDENTS = frozenset({"indent", "expandtabs", "tojson", "xmlattr"})
_FORMATS = frozenset({"format", "format_map"})
_FORBIDDEN_METHODS = frozenset({"translate", "maketrans"})
_FORBIDDEN_FILTERS = ("urlize",)


class LimitedTemplate:
    """A compiled template that ends in time.

    :param environment: jinja's, already a `LimitedEnvironment`
    :raises jinja2.TemplateError: the source is not a template
    """

    def __init__(self, environment: jinja2.Environment, source: str) -> None:
        self.environment = environment
        with limited_time():
            try:
                self._template = environment.from_string(source)
            except (RecursionError, MemoryError, SyntaxError, ValueError) as error:
                raise LimitError(f"it cannot be compiled: {error}") from error

    def render(self, **variables: Any) -> str:
        with limited_time():
            return "".join(self.generate(**variables))

    def generate(self, **variables: Any) -> Iterator[str]:
        """The text in pieces, never more than `MAX_CHARS` characters; the caller limits the time."""
        size = 0
        try:
            for piece in self._template.generate(**variables):
                size += len(piece)
                _check_size(size)
                yield piece
        except (RecursionError, MemoryError) as error:
            raise LimitError(f"it needs too much memory ({type(error).__name__})") from error


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Measures operators, filters, calls and literals before they run."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.limit()

    def limit(self) -> None:
        for name in _FORBIDDEN_FILTERS:
            self.filters.pop(name, None)
        self.filters = {name: _measured(name, function) for name, function in self.filters.items()}
        self.filters[_BOUNDED] = bounded
        self.filters[_JOINED] = _join_texts
        self.finalize = bounded
        self.__dict__["concat"] = _concat

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return cast("nodes.Template", _Literals().visit(super()._parse(source, name, filename)))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _OPERATORS[operator](left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  # as jinja has it
        method = getattr(__obj, "__wrapped__", __obj)  # jinja wraps `str.format`
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str | bytes | int):
            _measure_call(method.__name__, owner, (*args, *kwargs.values()))
        elif __obj is __self.globals.get("lipsum"):
            _measure_call("lipsum", "", (*args, *kwargs.values()))
        return super().call(__context, __obj, *args, **kwargs)


def limit_environment(environment: jinja2.Environment) -> LimitedEnvironment:
    """A copy of a sandboxed environment, with its filters and extensions, and with limits."""
    limited = copy.copy(environment)
    limited.__class__ = LimitedEnvironment
    limited.overlayed = True
    limited.cache = None
    limited.filters = dict(environment.filters)
    limited.extensions = {name: found.bind(limited) for name, found in environment.extensions.items()}
    cast("LimitedEnvironment", limited).limit()
    for found in limited.extensions.values():
        if hasattr(found, "activate_tracker"):
            limited.__dict__["activate_tracker"] = found.activate_tracker
    return cast("LimitedEnvironment", limited)


def bounded(value: Any) -> Any:
    """`value`, if written out it is not too long."""
    if isinstance(value, str):
        _check_size(len(value))
    elif isinstance(value, list | tuple | dict):
        _weigh(value)
    elif isinstance(value, int):
        _check_int(value.bit_length())
    return value


def _weigh(value: Any) -> int:
    """The characters that a value has at least when it is written out; parts that occur twice count twice.

    :raises LimitError: too many
    """
    size, items, waiting = 0, 0, [(value, 0)]
    while waiting:
        part, depth = waiting.pop()
        if isinstance(part, str | bytes):
            size += len(part)
        elif isinstance(part, dict):
            waiting += [(inner, depth + 1) for pair in part.items() for inner in pair]
        elif isinstance(part, list | tuple):
            waiting += [(inner, depth + 1) for inner in part]
        items += 1
        _check_size(size)
        if items + len(waiting) > _MAX_ITEMS or depth > _MAX_DEPTH:
            raise LimitError("it makes a value of too many parts")
    return size + items


def _check_size(size: float) -> None:
    if size > MAX_CHARS:
        raise LimitError(f"it makes more than {MAX_CHARS:,} characters")


def _check_int(bits: float) -> None:
    if bits > _MAX_INT_BITS:
        raise LimitError(f"it makes a number of more than {_MAX_INT_BITS:,} bits")


def _add(left: Any, right: Any) -> None:
    if isinstance(left, str | list | tuple):
        _check_size(_weigh(left) + _weigh(right))


def _multiply(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        _check_int(left.bit_length() + right.bit_length())
    for many, times in ((left, right), (right, left)):
        if isinstance(many, str | bytes | list | tuple) and isinstance(times, int):
            _check_size(_weigh(many) * max(times, 0))
            if not isinstance(many, str | bytes) and len(many) * times > _MAX_ITEMS:
                raise LimitError("it makes a list of too many parts")


def _raise_to(base: Any, exponent: Any) -> None:
    if isinstance(base, int) and isinstance(exponent, int):
        _check_int(base.bit_length() * max(exponent, 0))


def _fill_in(left: Any, right: Any) -> None:
    if isinstance(left, str | bytes):
        _measure_format(left, right if isinstance(right, tuple) else (right,))


_OPERATORS: dict[str, Callable[[Any, Any], None]] = {
    "+": _add,
    "*": _multiply,
    "**": _raise_to,
    "%": _fill_in,
}


def _measure_call(name: str, subject: Any, arguments: tuple[Any, ...]) -> None:
    """Before a filter, or a method of a text, runs in C."""
    widths = [abs(value) for value in arguments if isinstance(value, int)]
    if name in _FORBIDDEN_METHODS:
        raise LimitError(f"it calls {name!r}")
    if name in _FORMATS:
        _measure_format(subject, arguments)
    elif name in _PADS:
        _check_size(max(widths, default=0))
    elif name in _INDENTS:
        _check_size(_weigh(subject) * max(1, *widths, *map(_count, arguments)) if arguments else 0)
    elif name == "replace" and isinstance(subject, str) and len(arguments) > 1:
        old, new = map(str, arguments[:2])
        _check_size(len(subject) + (subject.count(old) if old else len(subject) + 1) * len(new))
    elif name == "join" and arguments:
        _check_size(_weigh(subject) + _weigh(arguments[0]) + _count(subject) * _count(arguments[0]))


def _count(value: Any) -> int:
    """Of what has no length, as many parts as there may be."""
    if value is None or isinstance(value, int | float):
        return 0
    return len(value) if hasattr(value, "__len__") else _MAX_ITEMS


def _measure_format(text: Any, arguments: tuple[Any, ...]) -> None:
    """A width is written in the format, or given beside it where the format has `*` or `{}` within `{}`."""
    found = text if isinstance(text, str) else str(text)
    numbers = [value for value in arguments if isinstance(value, int) and abs(value) >= 10**6]
    if _LONG_NUMBER.search(found) or (numbers and ("*" in found or re.search(r"\{[^}]*\{", found))):
        raise LimitError("it formats to a width of a million or more")
    _check_size(sum(_weigh(value) for value in arguments) * max(1, found.count("{"), found.count("%")))


def _measured(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose arguments are measured before and whose result is after."""
    passes = getattr(function, "jinja_pass_arg", None)
    skipped = 0 if passes is None else 1

    def measured(*args: Any, **kwargs: Any) -> Any:
        own = args[skipped:]
        for value in (*own, *kwargs.values()):
            bounded(value)
        if own:
            _measure_call(name, own[0], (*own[1:], *kwargs.values()))
        start = kwargs.get("start", own[2] if len(own) > 2 else 0)  # noqa: PLR2004
        if name == "sum" and not isinstance(start, int | float):
            raise LimitError("it sums what are not numbers")
        return bounded(function(*args, **kwargs))

    measured.__name__ = getattr(function, "__name__", name)
    if passes is not None:
        measured.jinja_pass_arg = passes  # type: ignore[attr-defined]
    if getattr(function, "jinja_async_variant", False):
        measured.jinja_async_variant = True  # type: ignore[attr-defined]
    return measured


def _concat(pieces: Iterable[str]) -> str:
    found = list(pieces)
    _check_size(sum(map(len, found)))
    return "".join(found)


def _join_texts(values: tuple[Any, ...]) -> str:
    """What `~` makes of its operands."""
    return _concat([str(bounded(value)) for value in values])


_BOUNDED, _JOINED = "sft_bounded", "sft_joined"


class _Literals(NodeTransformer):
    """Lists, tuples and dictionaries of variables, and `~`, go through filters that measure them."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(nodes.Tuple(node.nodes, "load"), _JOINED, node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(node, _BOUNDED, node.lineno) if node.items else node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(node, _BOUNDED, node.lineno) if node.items and node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(node, _BOUNDED, node.lineno) if node.items else node


def _filter(node: nodes.Expr, name: str, lineno: int) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=lineno)
