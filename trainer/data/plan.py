"""What is to be read, mixed and split: the config's two paths, or a data_config file. Checked before any data is opened."""

from __future__ import annotations

import base64
import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.errors import AccessDeniedError, ConfigError, NotFoundError

_STRATEGIES = ("all_exhausted", "first_exhausted")
_BUILDERS = ("json", "parquet", "arrow", "csv", "text")
_PROCESSOR_KEYS = (
    "type", "sampling_stopping_strategy", "seed", "streaming", "chat_template", "chat_template_path",
    "chat_template_base64",
)  # fmt: skip
_DATASET_KEYS = (
    "name", "data_paths", "builder", "sampling", "split", "dataset_split_name", "shuffle", "data_handlers",
)  # fmt: skip
_WEIGHT_TOLERANCE = 1e-6


@dataclass(frozen=True)
class HandlerSpec:
    """A data handler by name with its arguments, as the file has them."""

    name: str
    arguments: dict[str, Any]
    key: str


@dataclass(frozen=True)
class DatasetSpec:
    """One data set.

    :param key: the config key it comes from, for sentences
    :param train: the share of its rows that is trained on
    :param validation: the share that is evaluated on
    :param handlers: None where the columns and the config's keys say how rows become texts
    """

    name: str
    key: str
    data_paths: tuple[str, ...]
    train: float = 1.0
    validation: float = 0.0
    sampling: float | None = None
    builder: str | None = None
    split_name: str | None = None
    shuffle: bool = True
    handlers: tuple[HandlerSpec, ...] | None = None


@dataclass(frozen=True)
class DataPlan:
    """The data sets of a run and how they are mixed."""

    datasets: tuple[DatasetSpec, ...]
    streaming: bool = False
    stopping_strategy: str = "all_exhausted"
    seed: int = 42
    chat_template: str | None = None
    origin: str = field(default="", compare=False)

    def as_json(self) -> dict[str, Any]:
        """What of the plan the rows depend on: paths do not matter, content does."""
        plan = asdict(self)
        plan.pop("origin")
        for spec in plan["datasets"]:
            spec.pop("data_paths")
        return plan


def plan_data(values: Mapping[str, Any]) -> DataPlan:
    """
    :param values: `settings.values`
    :raises ConfigError: no data, or a wrong data_config
    """
    config_path = values.get("data_config_path")
    paths = {key: values.get(key) for key in ("training_data_path", "validation_data_path")}
    for key, path in paths.items():
        if config_path and path:
            raise ConfigError(
                f"data_config_path and {key} are both set. Name all data in {config_path}, or drop it."
            )
    if config_path:
        return read_plan(Path(config_path), values)
    if not paths["training_data_path"]:
        raise ConfigError(
            'Config key \'training_data_path\' is missing. Add it, for example "training_data_path": "/data/train.jsonl".'
        )
    datasets = [DatasetSpec("training_data", "training_data_path", (str(paths["training_data_path"]),))]
    if path := paths["validation_data_path"]:
        datasets.append(
            DatasetSpec("validation_data", "validation_data_path", (str(path),), train=0.0, validation=1.0)
        )
    return DataPlan(tuple(datasets))


def read_plan(path: Path, values: Mapping[str, Any]) -> DataPlan:
    """The plan in a data_config file.

    :raises NotFoundError, AccessDeniedError, ConfigError: no file, not readable, or wrong in one place, which is named
    """
    content = _load(path)
    _check_keys(content, ("dataprocessor", "datasets"), str(path))
    processor = content.get("dataprocessor") or {}
    where = f"{path}: dataprocessor"
    _check_keys(processor, _PROCESSOR_KEYS, where)
    if processor.get("type", "default") != "default":
        raise ConfigError(
            f"{where}.type is {processor['type']!r}. Online data mixing is not supported: take 'default' with sampling weights."
        )
    specs = content.get("datasets")
    if not isinstance(specs, list) or not specs:
        raise ConfigError(f"{path}: datasets is {_short(specs)}. Expected a list with at least one data set.")
    plan = DataPlan(
        datasets=tuple(_read_dataset(spec, f"{path}: datasets[{index}]") for index, spec in enumerate(specs)),
        streaming=_typed(processor, "streaming", bool, False, where),
        stopping_strategy=_choice(
            processor, "sampling_stopping_strategy", _STRATEGIES, "all_exhausted", where
        ),
        seed=_typed(processor, "seed", int, 42, where),
        chat_template=_chat_template(processor, path),
        origin=str(path),
    )
    _check_plan(plan, values)
    return plan


def _load(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise NotFoundError(
            f"data_config_path is {str(path)!r}, and nothing is there. Check that the volume is mounted."
        ) from error
    except PermissionError as error:
        raise AccessDeniedError(
            f"data_config_path {path} cannot be read. Give the pod's user the right to read it."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"data_config_path {path} cannot be read ({error}). Name a YAML or JSON file in UTF-8."
        ) from error
    content = _parse(path, text)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {_short(content)}. Expected an object with 'datasets'.")
    return content


def _parse(path: Path, text: str) -> Any:
    if path.suffix == ".json":
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path} line {error.lineno}: not JSON ({error.msg}). Correct it.") from error
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"data_config_path {path} ends in {path.suffix!r}. Expected .yaml, .yml or .json.")
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML ({' '.join(str(error).split())}). Correct it.") from error


def _read_dataset(spec: Any, where: str) -> DatasetSpec:
    _check_keys(spec, _DATASET_KEYS, where)
    paths = spec.get("data_paths")
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
        raise ConfigError(f"{where}.data_paths is {_short(paths)}. Expected a list of paths.")
    train, validation = _read_split(spec.get("split"), f"{where}.split")
    handlers = spec.get("data_handlers")
    return DatasetSpec(
        name=_typed(spec, "name", str, "", where),
        key=f"{where}.data_paths",
        data_paths=tuple(paths),
        train=train,
        validation=validation,
        sampling=_share(spec.get("sampling"), f"{where}.sampling")
        if spec.get("sampling") is not None
        else None,
        builder=_choice(spec, "builder", _BUILDERS, None, where),
        split_name=_typed(spec, "dataset_split_name", str, None, where),
        shuffle=_typed(spec, "shuffle", bool, True, where),
        handlers=None if handlers is None else tuple(_read_handlers(handlers, f"{where}.data_handlers")),
    )


def _read_split(split: Any, where: str) -> tuple[float, float]:
    if split is None:
        return 1.0, 0.0
    _check_keys(split, ("train", "validation"), where)
    train, validation = (_share(split.get(key, 0.0), f"{where}.{key}") for key in ("train", "validation"))
    if not 0 < train + validation <= 1 + _WEIGHT_TOLERANCE:
        raise ConfigError(
            f"{where} adds up to {train + validation:g}. Expected train and validation to sum to more than 0 and at most 1."
        )
    return train, validation


def _read_handlers(handlers: Any, where: str) -> Iterable[HandlerSpec]:
    if not isinstance(handlers, list):
        raise ConfigError(f"{where} is {_short(handlers)}. Expected a list of handlers.")
    for index, handler in enumerate(handlers):
        place = f"{where}[{index}]"
        _check_keys(handler, ("name", "arguments"), place)
        arguments = handler.get("arguments")
        if not isinstance(handler.get("name"), str) or not isinstance(arguments, dict | None):
            raise ConfigError(f"{place} is {_short(handler)}. Expected a name and an object of arguments.")
        yield HandlerSpec(handler["name"], arguments or {}, place)


def _chat_template(processor: Mapping[str, Any], path: Path) -> str | None:
    keys = [
        key for key in ("chat_template", "chat_template_path", "chat_template_base64") if processor.get(key)
    ]
    if len(keys) > 1:
        raise ConfigError(f"{path}: dataprocessor has {' and '.join(keys)}. Keep one.")
    if not keys:
        return None
    value = _typed(processor, keys[0], str, "", f"{path}: dataprocessor")
    if keys[0] == "chat_template_path":
        return read_template(value, f"{path}: dataprocessor.chat_template_path")
    return _decode_base64(value, path) if keys[0] == "chat_template_base64" else value


def read_template(path: str, key: str) -> str:
    """A chat template from a file.

    :raises NotFoundError, ConfigError: no file, or no text
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{key} is {path!r}, and nothing is there. Check that the volume is mounted."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key} {path!r} cannot be read ({error}). Name a text file in UTF-8.") from error


def _decode_base64(value: str, path: Path) -> str:
    try:
        return base64.b64decode(value, validate=True).decode("utf-8")
    except ValueError as error:
        raise ConfigError(
            f"{path}: dataprocessor.chat_template_base64 is no base64 of UTF-8 text ({error}). Encode it again."
        ) from error


def _check_plan(plan: DataPlan, values: Mapping[str, Any]) -> None:
    trained = [spec for spec in plan.datasets if spec.train > 0]
    if not trained:
        raise ConfigError(
            f"{plan.origin}: no data set has a train split. Give one a split with train above 0."
        )
    weighted = [spec for spec in trained if spec.sampling]
    if weighted and len(weighted) < len(trained):
        without = next(spec for spec in trained if not spec.sampling)
        raise ConfigError(
            f"{plan.origin}: data set {without.name!r} has no sampling weight, and others have. Give every trained data set one."
        )
    total = sum(spec.sampling or 0.0 for spec in weighted)
    if weighted and abs(total - 1) > _WEIGHT_TOLERANCE:
        raise ConfigError(f"{plan.origin}: the sampling weights sum to {total:g}. Expected 1.")
    if plan.streaming:
        _check_streaming(plan, values)


def _check_streaming(plan: DataPlan, values: Mapping[str, Any]) -> None:
    if (values.get("max_steps") or -1) < 1:
        raise ConfigError(
            f"{plan.origin} streams, and max_steps is {values.get('max_steps')!r}. Set it: a stream has no length to count epochs by."
        )
    if values.get("packing"):
        raise ConfigError(
            f"{plan.origin} streams, and packing is on. Drop one: packing needs to see rows before it packs them."
        )
    for spec in plan.datasets:
        if 0 < spec.train < 1 or 0 < spec.validation < 1:
            raise ConfigError(
                f"{plan.origin}: data set {spec.name!r} is to be split, and it streams. Split it into files, or turn streaming off."
            )


def _check_keys(value: Any, known: tuple[str, ...], where: str) -> None:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {_short(value)}. Expected an object with {', '.join(known)}.")
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Expected one of {', '.join(known)}."
            raise ConfigError(f"{where} has the unknown key {key!r}. {hint}")


def _typed(mapping: Mapping[str, Any], key: str, kind: type, default: Any, where: str) -> Any:
    value = mapping.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{where}.{key} is {_short(value)}. Expected {_KIND_NAMES[kind]}.")
    return value


def _choice(
    mapping: Mapping[str, Any], key: str, choices: tuple[str, ...], default: str | None, where: str
) -> Any:
    value = _typed(mapping, key, str, default, where)
    if value is not None and value not in choices:
        raise ConfigError(f"{where}.{key} is {value!r}. Expected one of {', '.join(choices)}.")
    return value


def _share(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"{where} is {_short(value)}. Expected a number from 0 to 1.")
    return float(value)


def _short(value: Any) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."  # noqa: PLR2004


_KIND_NAMES = {bool: "true or false", int: "a whole number", str: "a string"}
