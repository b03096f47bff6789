"""What makes two attempts the same run: the config's keys, and the content of every file that shapes the training.

No torch: the parent asks. `ownership` decides what follows from a difference.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.names import FSDP_DEFAULTS_ENV_VAR
from airflow_provider_sft.contract.paths import named_paths
from airflow_provider_sft.contract.schema import LAUNCH_KEY, config_keys
from airflow_provider_sft.contract.settings import Settings
from airflow_provider_sft.contract.wording import show
from trainer.data.files import LocatedData
from trainer.digests import Digests
from trainer.files import digest_json
from trainer.identity_keys import is_no_identity, may_change_before_resuming
from trainer.model_content import list_model_files, list_weight_files

IDENTITY_VERSION = 2
_DATA_KEYS = ("training_data_path", "validation_data_path")
_MODEL_KEYS = ("model_name_or_path", "tokenizer_name_or_path", "chat_template_path")
# Where the run's own files go: another spelling of the same place is the same.
_PLACES = ("output_dir", "save_model_dir")
_LENGTHS = ("num_train_epochs", "max_steps")


@dataclass(frozen=True)
class Difference:
    """
    :param name: the key, or the file's place below one
    :param sentence: a clause in words
    :param resumable: checkpoints mean the same
    :param grew: the run only became longer
    """

    name: str
    sentence: str
    resumable: bool = False
    grew: bool = False


@dataclass(frozen=True)
class RunIdentity:
    """
    :param keys: what the config says beyond the defaults, under present names, `accelerate_launch_args` flag by flag
    :param files: path and digest of each file that shapes the run, by the key that names it and the place below it
    :param weights_sha256: of the base model's weights; of its name where it comes from the Hub
    """

    keys: dict[str, Any]
    files: dict[str, dict[str, str]]
    weights_sha256: str
    run_id: str

    @property
    def config_sha256(self) -> str:
        return digest_json(self.keys)

    @property
    def data_sha256(self) -> str:
        return digest_json([entry["sha256"] for role, entry in self.files.items() if role.startswith("data")])

    def as_record(self) -> dict[str, Any]:
        return {"version": IDENTITY_VERSION, **asdict(self)}

    def differences(self, record: Mapping[str, Any]) -> list[Difference]:
        """From the `as_record` of another attempt."""
        return [
            *_differing_keys(record.get("keys") or {}, self.keys),
            *_differing_files(record.get("files") or {}, self.files),
        ]


def identify_run(
    settings: Settings, located: LocatedData, digests: Digests, *, environ: Mapping[str, str], run_id: str
) -> RunIdentity:
    """:raises NotFoundError: a file is gone, or changed while it was read"""
    files = dict(_find_files(settings.values, located, environ))
    sha256 = dict(zip(files.values(), digests.of(files.values()), strict=True))
    found = {role: {"path": str(path), "sha256": sha256[path]} for role, path in files.items()}
    found |= {role: {"path": text, "sha256": digest_json(text)} for role, text in _find_texts(located)}
    model = Path(str(settings.values["model_name_or_path"]))
    weights = [sha256[path] for path in list_weight_files(model, settings.values)]
    return RunIdentity(
        keys=dict(_find_keys(settings)),
        files=found,
        weights_sha256=digest_json(weights or str(model)),
        run_id=run_id,
    )


def _find_files(
    values: Mapping[str, Any], located: LocatedData, environ: Mapping[str, str]
) -> Iterator[tuple[str, Path]]:
    """Whatever key names it: a key that is declared to read a path is digested without an entry here."""
    for number, source in enumerate(located.sources, 1):
        yield from ((f"data set {number}, file {index}", file) for index, file in enumerate(source.files, 1))
    for named in named_paths(values):
        path = Path(named.text)
        if named.key in _MODEL_KEYS and path.is_dir():
            with_weights = named.key == "model_name_or_path"
            yield from (
                (f"{named.key}/{file.relative_to(path)}", file)
                for file in list_model_files(path, values, with_weights=with_weights)
            )
        elif _is_read(named.key, written=named.written) and path.is_file():
            yield named.key, path
    defaults = environ.get(FSDP_DEFAULTS_ENV_VAR)
    if defaults and Path(defaults).is_file():
        yield FSDP_DEFAULTS_ENV_VAR, Path(defaults)


def _is_read(key: str, *, written: bool) -> bool:
    """What a nested key does with its path is not declared: a file that is there before the run is read."""
    is_nested = "." in key and not key.startswith(f"{LAUNCH_KEY}.")
    return (not written or is_nested) and key not in (*_DATA_KEYS, "resume_from_checkpoint")


def _find_texts(located: LocatedData) -> Iterator[tuple[str, str]]:
    """What shapes the run and is no local file of a key: a Hub data set, the template that a data_config names."""
    for number, source in enumerate(located.sources, 1):
        if source.hub_id:
            yield f"data set {number}", source.hub_id
    if located.plan.chat_template:
        yield "data_config_path, chat template", located.plan.chat_template


def _find_keys(settings: Settings) -> Iterator[tuple[str, Any]]:
    """Without what only names a place: the content that is there counts, wherever it lies."""
    inputs = {
        named.key
        for named in named_paths(settings.values)
        if _is_local_input(named.key, Path(named.text), written=named.written)
    }
    for key in sorted(settings.given):
        value = settings.values[key]
        said = (
            _flags(value)
            if key == LAUNCH_KEY
            else {key: os.path.realpath(value) if key in _PLACES else value}
        )
        for name, each in said.items():
            if name not in inputs and not is_no_identity(name) and each != _default(name):
                yield name, each


def _flags(arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """By the names that sentences give them; a switch that is off is as one that is not there."""
    said = sorted((arguments or {}).items())
    return {f"{LAUNCH_KEY}.{flag}": value for flag, value in said if value not in (None, False, "")}


def _default(key: str) -> Any:
    return config_keys().get(key, {}).get("default")


def _is_local_input(key: str, path: Path, *, written: bool) -> bool:
    """Its content counts, wherever it lies."""
    if key in _DATA_KEYS:
        return not written and (path.exists() or any(sign in str(path) for sign in "*?["))
    return path.exists() and (key in _MODEL_KEYS or _is_read(key, written=written))


def _differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Difference]:
    for key in sorted(old.keys() | new.keys()):
        if is_no_identity(key):
            continue
        was, now = (said.get(key, _default(key)) for said in (old, new))
        if was != now:
            grew = key in _LENGTHS and _grew(was, now)
            clause = f"{key} is {show(now)} and was {show(was)}"
            yield Difference(key, clause, grew or may_change_before_resuming(key), grew)


def _grew(was: Any, now: Any) -> bool:
    numbers = isinstance(was, int | float) and isinstance(now, int | float)
    return numbers and 0 < was < now


def _differing_files(
    old: Mapping[str, Mapping[str, str]], new: Mapping[str, Mapping[str, str]]
) -> Iterator[Difference]:
    for role in dict.fromkeys([*new, *old]):
        was, now = old.get(role), new.get(role)
        if was is None or now is None or was["sha256"] != now["sha256"]:
            state = "is new" if was is None else "is gone" if now is None else "has other content"
            path = (now or was or {}).get("path", "")
            yield Difference(role, f"{role} ({show(path)}) {state}")
