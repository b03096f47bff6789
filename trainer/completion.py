"""The completion mark, written last: everything asked for is there, and these are its digests. Stdlib only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from airflow_provider_sft.contract.names import COMPLETE_FILE
from airflow_provider_sft.contract.outcome import Result
from trainer.files import describe_file, find_missing, read_json, write_json
from trainer.trained import Trained

MARK_VERSION = 2
_THREADS = 8
# Folders of other forms of the same model, and of the rows that `do_dataprocessing_only` leaves.
_FOLDERS = ("merged", "base", "train_dataset", "validation_dataset")
# What a mark without digests is judged by: a model that lacks one of these is none.
_NEEDED = (".safetensors", "config.json")


def write_mark(output_dir: Path, result: Result) -> None:
    trained = Trained.load(output_dir)
    write_json(
        output_dir / COMPLETE_FILE,
        {
            "version": MARK_VERSION,
            "files": dict(_describe_promised(output_dir, result, trained)),
            "trained": asdict(trained) if trained else None,
        },
    )


def find_loss(output_dir: Path, result: Result) -> str | None:
    """What of a finished run is gone or changed, as a clause; None where everything is as it was written."""
    mark = read_json(output_dir / COMPLETE_FILE) or {}
    files = mark.get("files")
    if not isinstance(files, dict):
        return _find_loss_without_digests(result)
    for directory, described in files.items():
        if described and (loss := _find_damage(Path(directory), described)):
            return f"{loss} in {directory}"
    return None


def read_trained(output_dir: Path) -> Trained | None:
    """The model before its export, which may still be whole where the export is gone."""
    return Trained.parse((read_json(output_dir / COMPLETE_FILE) or {}).get("trained"))


def _describe_promised(
    output_dir: Path, result: Result, trained: Trained | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Directory → its files; what was described when it was saved is not read again."""
    model_dir = Path(trained.model_dir) if trained else output_dir
    if trained:
        exported = [model_dir / name for name in trained.exported]
        yield str(model_dir), trained.files | _describe(model_dir, exported)
    folders = {model_dir / name for name in _FOLDERS} | {Path(result.get("model_path", model_dir))}
    for folder in sorted(folders - {model_dir}):
        if files := [path for path in sorted(folder.glob("*")) if path.is_file()]:
            yield str(folder), _describe(folder, files)


def _describe(directory: Path, paths: list[Path]) -> dict[str, Any]:
    with ThreadPoolExecutor(_THREADS) as pool:
        described = pool.map(describe_file, paths)
        return {str(path.relative_to(directory)): facts for path, facts in zip(paths, described, strict=True)}


def _find_damage(directory: Path, described: Mapping[str, Any]) -> str | None:
    if missing := next(find_missing(directory, described), None):
        return missing
    found = _describe(directory, [directory / name for name in described])
    changed = [name for name in described if found[name] != described[name]]
    return f"{changed[0]} has other content" if changed else None


def _find_loss_without_digests(result: Result) -> str | None:
    directory = Path(result.get("model_path", ""))
    for name in result.get("files", []):
        if name.endswith(_NEEDED) and not (directory / name).is_file():
            return f"{name} is missing in {directory}"
    return None
