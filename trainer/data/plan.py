"""What is to be read, split and mixed. No torch: the parent asks before any rank starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.errors import AccessDeniedError, ConfigError, NotFoundError


@dataclass(frozen=True)
class HandlerSpec:
    """A data handler by name with its arguments, as a data_config has them.

    :param key: where it stands, for sentences
    """

    name: str
    arguments: dict[str, Any]
    key: str


@dataclass(frozen=True)
class DatasetSpec:
    """One data set.

    :param key: the config key it comes from, for sentences
    :param train: the share of its rows that is trained on
    :param validation: the share that is evaluated on
    :param sampling: its weight in the mix of training rows
    :param builder: the kind of its files, where their suffix does not say
    :param split_name: of a Hub data set
    :param handlers: None where the columns and the config's keys say how rows become texts
    """

    name: str
    key: str
    data_paths: tuple[str, ...]
    train: float = 1.0
    validation: float = 0.0
    sampling: float | None = None
    builder: str | None = None
    split_name: str = "train"
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

    def as_json(self) -> dict[str, Any]:
        """What of the plan the rows depend on: the files' content does, their paths do not."""
        plan = asdict(self)
        for spec in plan["datasets"]:
            spec.pop("data_paths")
            spec.pop("key")
            for handler in spec["handlers"] or ():
                handler.pop("key")
        return plan


def plan_paths(values: Mapping[str, Any]) -> DataPlan:
    """The plan of training_data_path and validation_data_path.

    :raises ConfigError: nothing to train on
    """
    train, validation = values.get("training_data_path"), values.get("validation_data_path")
    if not train:
        raise ConfigError(
            "Config key 'training_data_path' is missing. Add it, for example "
            '"training_data_path": "/data/train.jsonl".'
        )
    specs = [DatasetSpec("training_data", "training_data_path", (str(train),))]
    if validation:
        specs.append(
            DatasetSpec(
                "validation_data", "validation_data_path", (str(validation),), train=0.0, validation=1.0
            )
        )
    return DataPlan(tuple(specs))


def read_text_file(path: Path, key: str) -> str:
    """A small file that a config names: a template, a data config.

    :raises NotFoundError, AccessDeniedError, ConfigError: no file, not readable, or no text
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{key} is {str(path)!r}, and nothing is there. Check that the volume is mounted."
        ) from error
    except PermissionError as error:
        raise AccessDeniedError(
            f"{key} {str(path)!r} cannot be read. Give the pod's user the right to read it."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key} {str(path)!r} cannot be read ({error}). Name a UTF-8 text file.") from error
