"""A data_config file (YAML or JSON): several data sets, their splits, weights and handlers."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.errors import ConfigError
from trainer.data.checks import check_keys, show, take, take_choice
from trainer.data.plan import DataPlan, DatasetSpec, HandlerSpec, read_text_file
from trainer.data.roots import check_allowed

_PROCESSOR_KEYS = (
    "type", "sampling_stopping_strategy", "seed", "streaming", "chat_template", "chat_template_path",
    "chat_template_base64",
)  # fmt: skip
_DATASET_KEYS = (
    "name", "data_paths", "builder", "sampling", "split", "dataset_split_name", "shuffle", "data_handlers",
)  # fmt: skip
_STRATEGIES = ("all_exhausted", "first_exhausted")
_BUILDERS = ("json", "parquet", "arrow", "csv", "text")
_TEMPLATE_KEYS = ("chat_template", "chat_template_path", "chat_template_base64")
# Weights that add up to 1 but for float error add up to 1.
_TOLERANCE = 1e-6


def read_data_config(path: Path, values: Mapping[str, Any], environ: Mapping[str, str]) -> DataPlan:
    """
    :param values: `settings.values`, which must agree with a stream
    :raises ConfigError: wrong in one place, which is named
    :raises NotFoundError, AccessDeniedError: no file, or not readable
    """
    content = _parse(path, read_text_file(path, "data_config_path"))
    check_keys(content, ("dataprocessor", "datasets"), str(path))
    processor, where = content.get("dataprocessor") or {}, f"{path}: dataprocessor"
    check_keys(processor, _PROCESSOR_KEYS, where)
    if processor.get("type", "default") != "default":
        raise ConfigError(
            f"{where}.type is {processor['type']!r}. Online data mixing is not supported: take 'default' and "
            "give the data sets sampling weights."
        )
    specs = content.get("datasets")
    if not isinstance(specs, list) or not specs:
        raise ConfigError(f"{path}: datasets is {show(specs)}. Expected a list with at least one data set.")
    plan = DataPlan(
        datasets=tuple(_read_dataset(spec, f"{path}: datasets[{index}]") for index, spec in enumerate(specs)),
        streaming=take(processor, "streaming", bool, False, where),
        stopping_strategy=take_choice(
            processor, "sampling_stopping_strategy", _STRATEGIES, "all_exhausted", where
        ),
        seed=take(processor, "seed", int, 42, where),
        chat_template=_read_chat_template(processor, where, environ),
    )
    _check_weights(plan, path)
    if plan.streaming:
        _check_stream(plan, path, values)
    return plan


def _parse(path: Path, text: str) -> Any:
    if path.suffix == ".json":
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path} line {error.lineno}: not JSON ({error.msg}). Correct it.") from error
        except (RecursionError, ValueError) as error:
            raise ConfigError(
                f"{path} is nested too deeply, or holds a number that is too long. Correct it."
            ) from error
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"data_config_path {path} ends in {path.suffix!r}. Expected .yaml, .yml or .json.")
    from trainer.yaml_text import parse_yaml

    return parse_yaml(text, str(path))


def _read_dataset(spec: Any, where: str) -> DatasetSpec:
    check_keys(spec, _DATASET_KEYS, where)
    paths = spec.get("data_paths")
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
        raise ConfigError(f"{where}.data_paths is {show(paths)}. Expected a list of paths.")
    train, validation = _read_split(spec.get("split"), f"{where}.split")
    sampling, handlers = spec.get("sampling"), spec.get("data_handlers")
    return DatasetSpec(
        name=take(spec, "name", str, "", where),
        key=f"{where}.data_paths",
        data_paths=tuple(paths),
        train=train,
        validation=validation,
        sampling=None if sampling is None else _share(sampling, f"{where}.sampling"),
        builder=take_choice(spec, "builder", _BUILDERS, None, where),
        split_name=take(spec, "dataset_split_name", str, "train", where),
        shuffle=take(spec, "shuffle", bool, True, where),
        handlers=None if handlers is None else tuple(_read_handlers(handlers, f"{where}.data_handlers")),
    )


def _read_split(split: Any, where: str) -> tuple[float, float]:
    if split is None:
        return 1.0, 0.0
    check_keys(split, ("train", "validation"), where)
    train = _share(split.get("train", 0.0), f"{where}.train")
    validation = _share(split.get("validation", 0.0), f"{where}.validation")
    if not 0 < train + validation <= 1 + _TOLERANCE:
        raise ConfigError(
            f"{where} adds up to {train + validation:g}. Expected train and validation to add up to more than 0 "
            "and at most 1."
        )
    return train, validation


def _read_handlers(handlers: Any, where: str) -> Iterator[HandlerSpec]:
    if not isinstance(handlers, list):
        raise ConfigError(f"{where} is {show(handlers)}. Expected a list of handlers.")
    for index, handler in enumerate(handlers):
        place = f"{where}[{index}]"
        check_keys(handler, ("name", "arguments"), place)
        name = take(handler, "name", str, None, place)
        if name is None:
            raise ConfigError(f"{place} has no name. Name a handler.")
        yield HandlerSpec(name, take(handler, "arguments", dict, {}, place), place)


def _read_chat_template(processor: Mapping[str, Any], where: str, environ: Mapping[str, str]) -> str | None:
    keys = [key for key in _TEMPLATE_KEYS if processor.get(key)]
    if len(keys) > 1:
        raise ConfigError(f"{where} has {' and '.join(keys)}. Keep one.")
    if not keys:
        return None
    value: str = take(processor, keys[0], str, "", where)
    if keys[0] == "chat_template":
        return value
    if keys[0] == "chat_template_path":
        template_path = Path(value).expanduser()
        check_allowed(f"{where}.chat_template_path", template_path, environ)
        return read_text_file(template_path, f"{where}.chat_template_path")
    try:
        return base64.b64decode(value, validate=True).decode("utf-8")
    except ValueError as error:
        raise ConfigError(
            f"{where}.chat_template_base64 is no base64 of UTF-8 text ({error}). Encode it again."
        ) from error


def _share(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"{where} is {show(value)}. Expected a number from 0 to 1.")
    return float(value)


def _check_weights(plan: DataPlan, path: Path) -> None:
    trained = [spec for spec in plan.datasets if spec.train > 0]
    if not trained:
        raise ConfigError(f"{path}: no data set is trained on. Give one a split with train above 0.")
    weighted = [spec for spec in trained if spec.sampling]
    if not weighted:
        return
    if len(weighted) < len(trained):
        without = next(spec for spec in trained if not spec.sampling)
        raise ConfigError(
            f"{path}: data set {without.name!r} has no sampling weight, and others have. Give every data set "
            "that is trained on one."
        )
    total = sum(spec.sampling or 0.0 for spec in weighted)
    if abs(total - 1) > _TOLERANCE:
        raise ConfigError(f"{path}: the sampling weights add up to {total:g}. Expected 1.")


def _check_stream(plan: DataPlan, path: Path, values: Mapping[str, Any]) -> None:
    max_steps = values.get("max_steps")
    if not max_steps or max_steps < 1:
        raise ConfigError(
            f"{path} streams, and max_steps is {max_steps!r}. Set it: a stream has no length to count epochs by."
        )
    for key in ("packing", "padding_free", "do_dataprocessing_only"):
        if values.get(key):
            raise ConfigError(
                f"{path} streams, and {key} is on. Drop one: a stream is not seen before it runs."
            )
    for spec in plan.datasets:
        if 0 < spec.train < 1 or 0 < spec.validation < 1:
            raise ConfigError(
                f"{path}: data set {spec.name!r} is split, and it streams. Split it into files, or turn "
                "streaming off."
            )
