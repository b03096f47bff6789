"""Rules: Python expressions over metrics, evaluated by simpleeval with less than simpleeval allows.

No attribute of an object is ever read: `loss.value` is `loss["value"]`. Sequences cannot be multiplied, powers are
bounded, text is never formatted: no rule takes long or much memory.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from simpleeval import DEFAULT_FUNCTIONS, DEFAULT_OPERATORS, EvalWithCompoundTypes, InvalidExpression

from airflow_provider_sft.contract.wording import show, suggest

_MAX_RULE_CHARS = 2000
_MAX_POWER_BITS = 4096
_METHODS: dict[type, tuple[str, ...]] = {dict: ("get", "keys", "values", "items"), list: ("count", "index")}
_METHOD_NAMES = frozenset(name for names in _METHODS.values() for name in names)
_FORBIDDEN_NODES = (
    ast.JoinedStr,
    ast.Lambda,
    ast.NamedExpr,
    ast.Starred,
    ast.Await,
    ast.Yield,
    ast.YieldFrom,
)


class RuleError(ValueError):
    """A rule that cannot be right, as the end of a sentence: `has no key 'los'. Did you mean 'loss'?`"""


class _NotYetError(Exception):
    """The rule needs a value that is not there yet."""


@dataclass(frozen=True)
class Rule:
    """A rule that may be evaluated."""

    text: str
    tree: ast.Expression

    def evaluate(self, metrics: Mapping[str, Any]) -> bool | None:
        """True or false; None while a metric that it needs has no value yet.

        :raises RuleError: it can never be evaluated
        """
        evaluator = _Evaluator(metrics)
        try:
            value = evaluator.eval(self.text, previously_parsed=self.tree.body)
        except _NotYetError:
            return None
        except RuleError:
            raise
        except (ArithmeticError, InvalidExpression, ValueError, TypeError, RecursionError) as error:
            if isinstance(error, TypeError) and evaluator.met_none:
                return None
            raise RuleError(f"cannot be evaluated: {error}.") from error
        if isinstance(value, bool):
            return value
        if value is None and evaluator.met_none:
            return None
        raise RuleError(f"gives {show(value)}, which is neither true nor false. Compare it with something.")


def compile_rule(text: str, samples: Mapping[str, Any]) -> Rule:
    """
    :param samples: for each metric, something that looks like its value
    :raises RuleError: not an expression, or one that can never be evaluated
    """
    if len(text) > _MAX_RULE_CHARS:
        raise RuleError(f"has {len(text)} characters; {_MAX_RULE_CHARS} are allowed. Shorten it.")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise RuleError(f"is not a Python expression ({reason}).") from None
    for complaint in _complaints(tree, samples):
        raise RuleError(complaint)
    rule = Rule(text.strip(), tree)
    rule.evaluate(samples)
    return rule


def _complaints(tree: ast.Expression, samples: Mapping[str, Any]) -> Iterator[str]:
    known = {*samples, *_FUNCTIONS, *_own_names(tree)}
    for node in ast.walk(tree):
        if isinstance(node, _FORBIDDEN_NODES):
            yield f"uses {type(node).__name__}, which rules do not have."
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            yield f"reads {node.attr!r}. Names that start with an underscore are not read."
        if isinstance(node, ast.Name) and node.id not in known:
            yield f"names {node.id!r}, which is no metric of this file and no function.{_did_you_mean(node.id, known)}"
        if isinstance(node, ast.Call) and not _is_callable(node.func):
            yield f"calls {ast.unparse(node.func)!r}. Rules can call {', '.join(sorted(_FUNCTIONS))}."
        if isinstance(node, ast.Subscript | ast.Attribute):
            yield from _wrong_key(node, samples)


def _wrong_key(node: ast.expr, samples: Mapping[str, Any]) -> Iterator[str]:
    """Parts of the rule that its short-circuits hide are tried one by one."""
    try:
        _Evaluator(samples).eval("", previously_parsed=node)
    except RuleError as error:
        yield str(error)
    except Exception:  # noqa: BLE001  # what else is wrong shows when the rule as a whole is tried
        return


def _own_names(tree: ast.Expression) -> set[str]:
    """The variables of comprehensions."""
    return {
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def _is_callable(function: ast.expr) -> bool:
    if isinstance(function, ast.Name):
        return function.id in _FUNCTIONS
    return isinstance(function, ast.Attribute) and function.attr in _METHOD_NAMES


def _did_you_mean(word: str, choices: set[str]) -> str:
    near = suggest(word, choices)
    return f" Did you mean {near!r}?" if near else ""


class _Evaluator(EvalWithCompoundTypes):
    def __init__(self, metrics: Mapping[str, Any]) -> None:
        super().__init__(operators=_OPERATORS, functions=dict(_FUNCTIONS), names=dict(metrics))
        self.met_none = False

    def _eval(self, node: ast.AST) -> Any:
        value = super()._eval(node)
        if value is None and not isinstance(node, ast.Constant):
            self.met_none = True
        return value

    def _eval_compare(self, node: ast.Compare) -> bool:
        left, value = node.left, self._eval(node.left)
        for how, right in zip(node.ops, node.comparators, strict=True):
            other = self._eval(right)
            if not (isinstance(how, ast.Is | ast.IsNot) or _is_none(left) or _is_none(right)):
                _need(value, other)
            if not self.operators[type(how)](value, other):
                return False
            left, value = right, other
        return True

    def _eval_unaryop(self, node: ast.UnaryOp) -> Any:
        value = self._eval(node.operand)
        _need(value)
        return self.operators[type(node.op)](value)

    def _eval_subscript(self, node: ast.Subscript) -> Any:
        return self._look_up(self._eval(node.value), self._eval(node.slice), ast.unparse(node.value))

    def _eval_attribute(self, node: ast.Attribute) -> Any:
        holder = self._eval(node.value)
        if (
            isinstance(holder, dict | list)
            and node.attr in _METHODS[_plain_kind(holder)]
            and node.attr not in holder
        ):
            return getattr(holder, node.attr)
        return self._look_up(holder, node.attr, ast.unparse(node.value))

    def _look_up(self, holder: Any, key: Any, name: str) -> Any:
        if holder is None:
            raise _NotYetError
        if not isinstance(holder, dict | list | tuple | str):
            raise RuleError(f"looks up {key!r} in {name}, which is {show(holder)}.")
        try:
            return holder[key]
        except IndexError:
            raise _NotYetError from None
        except KeyError:
            if not holder:
                raise _NotYetError from None
            raise RuleError(f"looks for {key!r} in {name}, which has {_list_keys(key, holder)}") from None


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _need(*values: Any) -> None:
    """Nothing is equal or unequal to a value that is not there, nor is its contrary true."""
    if any(value is None for value in values):
        raise _NotYetError


def _plain_kind(holder: dict[str, Any] | list[Any]) -> type:
    return dict if isinstance(holder, dict) else list


def _list_keys(key: Any, holder: Any) -> str:
    near = suggest(str(key), [str(known) for known in holder])
    return f"{', '.join(map(repr, holder))}." + (f" Did you mean {near!r}?" if near else "")


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > _MAX_POWER_BITS:
        raise RuleError(f"raises {base} to {exponent}, which is too large.")
    return base**exponent


def _of_numbers(function: Any) -> Any:
    def checked(left: Any, right: Any) -> Any:
        for operand in (left, right):
            if not isinstance(operand, int | float):
                # "%999999999d" % 1 and [0] * 10**9 are how an expression eats memory.
                raise TypeError(f"{show(operand)} is not a number")
        return function(left, right)

    return checked


_FUNCTIONS = {
    **DEFAULT_FUNCTIONS,
    "abs": abs,
    "len": len,
    "max": max,
    "min": min,
    "round": round,
    "sum": sum,
    "math_ceil": math.ceil,
    "math_floor": math.floor,
    "math_sqrt": math.sqrt,
    "math_trunc": math.trunc,
}
_OPERATORS = {
    kind: function
    for kind, function in DEFAULT_OPERATORS.items()
    if kind not in (ast.LShift, ast.RShift, ast.Is, ast.IsNot)
} | {
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.Mult: _of_numbers(operator.mul),
    ast.Mod: _of_numbers(operator.mod),
    ast.Pow: _of_numbers(_power),
}
