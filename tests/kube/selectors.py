"""Label and field selectors, as the query strings `labelSelector` and `fieldSelector` carry them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tests.kube.errors import ApiError
from tests.kube.resources import EVENTS, PODS, Resource

Matcher = Callable[[dict[str, Any]], bool]

_COMMA_OUTSIDE_PARENTHESES = re.compile(r",(?![^()]*\))")
_SET_BASED = re.compile(r"^\s*(\S+)\s+(in|notin)\s+\(([^()]*)\)\s*$")
_EQUALITY = re.compile(r"^\s*([^!=\s]+)\s*(==|=|!=)\s*([^=\s]*)\s*$")
_EXISTENCE = re.compile(r"^\s*(!?)\s*([^!=\s]+)\s*$")

_FIELDS: dict[Resource, frozenset[str]] = {
    PODS: frozenset(
        {
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "status.phase",
            "status.podIP",
        }
    ),
    EVENTS: frozenset(
        {
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        }
    ),
}
_ALWAYS = frozenset({"metadata.name", "metadata.namespace"})


def build_matcher(resource: Resource, label_selector: str, field_selector: str) -> Matcher:
    """A predicate over objects of `resource`. :raises ApiError: 400 for a selector that cannot be parsed"""
    tests = [_label_test(term) for term in _terms(label_selector)]
    tests += [_field_test(resource, term) for term in _terms(field_selector)]
    return lambda obj: all(test(obj) for test in tests)


def _terms(selector: str) -> list[str]:
    return [term for term in _COMMA_OUTSIDE_PARENTHESES.split(selector) if term.strip()]


def _label_test(term: str) -> Matcher:
    if match := _SET_BASED.match(term):
        key, operator, listed = match.groups()
        values = {value.strip() for value in listed.split(",")}
        return lambda obj: (_label(obj, key) in values) == (operator == "in")
    if match := _EQUALITY.match(term):
        key, operator, value = match.groups()
        return lambda obj: (_label(obj, key) == value) == (operator != "!=")
    if match := _EXISTENCE.match(term):
        negation, key = match.groups()
        return lambda obj: (_label(obj, key) is None) == bool(negation)
    raise ApiError(400, f"unable to parse requirement: {term!r}")


def _field_test(resource: Resource, term: str) -> Matcher:
    match = _EQUALITY.match(term)
    if not match:
        raise ApiError(400, f"invalid selector: '{term}'; can't understand '{term}'")
    path, operator, value = match.groups()
    if path not in _FIELDS.get(resource, frozenset()) | _ALWAYS:
        raise ApiError(400, f"field label not supported: {path}")
    return lambda obj: (_field(obj, path) == value) == (operator != "!=")


def _label(obj: dict[str, Any], key: str) -> str | None:
    labels: dict[str, str] = obj["metadata"].get("labels") or {}
    return labels.get(key)


def _field(obj: dict[str, Any], path: str) -> str:
    if path == "source":
        path = "source.component"
    value: Any = obj
    for part in path.split("."):
        value = (value or {}).get(part)
    return "" if value is None else str(value)
