"""The trainer controller's file, read and checked: every mistake a sentence, before anything is trained. No torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from airflow_provider_sft.contract.errors import ConfigError
from airflow_provider_sft.contract.wording import show, suggest
from trainer.controller.log_format import find_flaws
from trainer.controller.metrics import EVENTS, METRIC_KINDS, Metric
from trainer.controller.plan import Action, Controller, ControllerPlan, Operation, Patience
from trainer.controller.rules import Rule, RuleError, compile_rule
from trainer.yaml_text import parse_yaml

_OPERATION_KINDS = ("HFControls", "LogControl")
_PATIENCE_MODES = ("reset_on_failure", "no_reset_on_failure")
_LOG_LEVELS = ("critical", "error", "warning", "info", "debug")
_EVALUATION_METRICS = ("EvalMetrics",)


def read_controller_plan(path: Path, *, evaluates: bool) -> ControllerPlan:
    """
    :param evaluates: whether the run has data to evaluate on
    :raises ConfigError: with every mistake of the file, a line each
    """
    reader = _Reader(path.name, evaluates=evaluates)
    plan = reader.read(_parse(path))
    if reader.mistakes:
        raise ConfigError("\n".join(reader.mistakes))
    return plan


def _parse(path: Path) -> Any:
    key = "trainer_controller_config_file"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"Config key {key!r} is {str(path)!r}, which does not exist. Correct it.") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"byte {error.start + 1} is not UTF-8"
        raise ConfigError(f"Config key {key!r} is {str(path)!r}, which cannot be read ({reason}).") from None
    return parse_yaml(text, path.name, _UniqueKeyLoader)


class _UniqueKeyLoader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key is not a text", key_node.start_mark
                )
            if key_node.value in seen:
                where = f"line {key_node.start_mark.line + 1}"
                raise yaml.constructor.ConstructorError(
                    None, None, f"{where}: {key_node.value!r} stands twice"
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


class _Reader:
    """Collects mistakes while it reads."""

    def __init__(self, file: str, *, evaluates: bool) -> None:
        self._file = file
        self._evaluates = evaluates
        self.mistakes: list[str] = []
        self._plan = ControllerPlan()
        self._operations = {"hfcontrols": Operation("hfcontrols")}

    def read(self, content: Any) -> ControllerPlan:
        if not isinstance(content, Mapping):
            self._complain(
                "the file", f"is {show(content)}. Write controller_metrics, operations and controllers."
            )
            return self._plan
        optional = ("controller_metrics", "operations")
        self._check_keys(content, "the file", required=("controllers",), optional=optional)
        self._each(content, "controller_metrics", self._read_metric)
        self._each(content, "operations", self._read_operation)
        self._each(content, "controllers", self._read_controller)
        return self._plan

    def _each(self, content: Mapping[str, Any], key: str, read: Callable[[Any, str], None]) -> None:
        entries = content.get(key) or []
        if not isinstance(entries, list):
            self._complain(key, f"is {show(entries)}. Write a list.")
            return
        for index, entry in enumerate(entries):
            where = f"{key}[{index}]"
            if isinstance(entry, Mapping):
                read(entry, f"{where} ({entry['name']})" if isinstance(entry.get("name"), str) else where)
            else:
                self._complain(where, f"is {show(entry)}. Write an object with a name.")

    def _read_metric(self, entry: Mapping[str, Any], where: str) -> None:
        self._check_keys(entry, where, required=("name", "class"), optional=("arguments",))
        name, kind = self._text(entry, "name", where), self._choice(entry, "class", METRIC_KINDS, where)
        allowed = {"HistoryBasedMetric": ("window_size",), "EvalMetrics": ("source_event",)}.get(
            kind or "", ()
        )
        arguments = self._object(entry, "arguments", where, allowed)
        window_size = arguments.get("window_size", 1)
        if not _is_whole(window_size) or window_size == 0:
            self._complain(
                where, f"window_size is {show(window_size)}. Give a number above 0, or -1 for all."
            )
        if any(metric.name == name for metric in self._plan.metrics):
            self._complain(where, "has the name of another metric. Rename one of them.")
        if name and kind:
            self._warn_of_silence(name, kind, arguments, where)
            self._plan.metrics.append(Metric(name, kind, window_size if _is_whole(window_size) else 1))

    def _warn_of_silence(self, name: str, kind: str, arguments: Mapping[str, Any], where: str) -> None:
        event = self._choice(
            arguments, "source_event", ("on_evaluate", "on_predict"), where, default="on_evaluate"
        )
        if event == "on_predict":
            self._notice(f"metric {name!r} waits for on_predict, which a tuning run never comes to.")
        elif kind in _EVALUATION_METRICS and not self._evaluates:
            self._notice(f"metric {name!r} never has a value: nothing is evaluated. Set eval_strategy.")

    def _read_operation(self, entry: Mapping[str, Any], where: str) -> None:
        self._check_keys(entry, where, required=("name", "class"), optional=("arguments",))
        name, kind = self._text(entry, "name", where), self._choice(entry, "class", _OPERATION_KINDS, where)
        if kind == "HFControls":
            self._object(entry, "arguments", where, ())
        required = ("log_format", "log_level") if kind == "LogControl" else ()
        if not name or not kind:
            return
        if kind == "HFControls":
            self._operations[name] = Operation(name)
            return
        arguments = self._object(entry, "arguments", where, required, required=required)
        log_format = self._text(arguments, "log_format", where)
        for flaw in find_flaws(log_format or "", self._samples()):
            self._complain(where, f"log_format {flaw}")
        level = self._level(arguments, "log_level", where, default="info")
        self._operations[name] = Operation(name, log_format or "", level)

    def _read_controller(self, entry: Mapping[str, Any], where: str) -> None:
        required = ("name", "triggers", "rule", "operations")
        self._check_keys(entry, where, required=required, optional=("patience", "config"))
        if not all(key in entry for key in required):
            return
        rule = self._rule(entry, where)
        triggers = [t for t in self._list(entry, "triggers", where) if self._check_trigger(t, where)]
        actions = [a for o in self._list(entry, "operations", where) if (a := self._action(o, where))]
        config = self._object(entry, "config", where, ("trigger_log_level",))
        level = self._level(config, "trigger_log_level", f"{where} config", default="debug")
        patience = self._patience(entry, where)
        name = self._text(entry, "name", where)
        if name and rule:
            self._plan.controllers.append(
                Controller(name, tuple(triggers), rule, tuple(actions), patience, level)
            )

    def _rule(self, entry: Mapping[str, Any], where: str) -> Rule | None:
        text = entry["rule"]
        if isinstance(text, bool):  # unquoted, YAML makes a boolean of True
            text = str(text)
        if not isinstance(text, str):
            self._complain(where, f"rule is {show(text)}. Write an expression in quotes.")
            return None
        try:
            return compile_rule(text, self._samples())
        except RuleError as error:
            self._complain(where, f"the rule {show(text.strip())} {error}")
            return None

    def _check_trigger(self, trigger: Any, where: str) -> bool:
        if trigger not in EVENTS:
            self._complain(where, f"trigger {show(trigger)} is no event.{_hint(trigger, EVENTS)}")
            return False
        if trigger == "on_predict":
            self._notice(f"{where} waits for on_predict, which a tuning run never comes to.")
        return True

    def _action(self, spelled: Any, where: str) -> Action | None:
        operation_name, _, name = str(spelled).partition(".")
        operation = self._operations.get(operation_name)
        known = [f"{each.name}.{action}" for each in self._operations.values() for action in each.actions]
        if operation is None or name not in operation.actions:
            self._complain(where, f"operation {show(spelled)} does not exist.{_hint(spelled, known)}")
            return None
        action = Action(operation, name)
        if action.steers and name == "should_evaluate" and not self._evaluates:
            sentence = "should_evaluate has nothing to evaluate on. Add validation_data_path."
            self._complain(where, sentence)
        return action

    def _patience(self, entry: Mapping[str, Any], where: str) -> Patience | None:
        if entry.get("patience") is None:
            return None
        options = self._object(entry, "patience", where, ("patience_threshold", "mode"))
        threshold = options.get("patience_threshold", 1)
        if not _is_whole(threshold) or threshold < 0:
            self._complain(
                where, f"patience_threshold is {show(threshold)}. Give a whole number of at least 0."
            )
            return None
        mode = self._choice(options, "mode", _PATIENCE_MODES, where, default=_PATIENCE_MODES[0])
        return Patience(threshold, resets=mode != "no_reset_on_failure")

    def _samples(self) -> dict[str, Any]:
        return {metric.name: metric.sample() for metric in self._plan.metrics}

    # What an entry holds.

    def _check_keys(
        self, entry: Mapping[str, Any], where: str, *, required: tuple[str, ...], optional: tuple[str, ...]
    ) -> None:
        known = (*required, *optional)
        for key in entry:
            if key not in known:
                self._complain(where, f"has an unknown key {show(key)}.{_hint(key, known)}")
        missing = [key for key in required if key not in entry]
        if missing:
            self._complain(where, f"lacks {' and '.join(map(repr, missing))}.")

    def _object(
        self,
        entry: Mapping[str, Any],
        key: str,
        where: str,
        known: tuple[str, ...],
        *,
        required: tuple[str, ...] = (),
    ) -> Mapping[str, Any]:
        value = entry.get(key) or {}
        if not isinstance(value, Mapping):
            self._complain(where, f"{key} is {show(value)}. Write keys and values.")
            return {}
        self._check_keys(value, f"{where} {key}", required=required, optional=known)
        return value

    def _list(self, entry: Mapping[str, Any], key: str, where: str) -> list[Any]:
        value = entry[key]
        if isinstance(value, list) and value:
            return value
        self._complain(where, f"{key} is {show(value)}. Write a list with at least one entry.")
        return []

    def _text(self, entry: Mapping[str, Any], key: str, where: str) -> str | None:
        value = entry.get(key)
        if isinstance(value, str) and value:
            return value
        if key in entry:
            self._complain(where, f"{key} is {show(value)}. Write a text.")
        return None

    def _choice(
        self,
        entry: Mapping[str, Any],
        key: str,
        choices: tuple[str, ...],
        where: str,
        default: str | None = None,
    ) -> str | None:
        value = entry.get(key, default)
        if value not in choices and key in entry:
            self._complain(where, f"{key} is {show(value)}.{_hint(value, choices)}")
            return None
        return value

    def _level(self, entry: Mapping[str, Any], key: str, where: str, *, default: str) -> int:
        lowered = {key: str(entry[key]).lower()} if key in entry else {}
        level = self._choice(lowered, key, _LOG_LEVELS, where, default=default)
        return int(logging.getLevelNamesMapping()[(level or default).upper()])

    def _complain(self, where: str, what: str) -> None:
        self.mistakes.append(f"{self._file}: {where}: {what}")

    def _notice(self, what: str) -> None:
        self._plan.notices.append(f"{self._file}: {what}")


def _hint(word: Any, choices: tuple[str, ...] | list[str]) -> str:
    if near := suggest(str(word), choices):
        return f" Did you mean {near!r}?"
    return f" It takes {', '.join(choices)}." if choices else " It takes none."


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
