"""The export, step by step: read the adapter, find its trained rows, refuse what cannot be right, write, judge."""

from __future__ import annotations

import errno
import json
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from airflow_provider_sft.contract.adapter_files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    TensorEntry,
    read_json_object,
)
from airflow_provider_sft.contract.errors import ExportError, NotFoundError, StorageFullError
from airflow_provider_sft.contract.exit_codes import ExitCode
from airflow_provider_sft.contract.names import ADDED_TOKENS_FILE, NEW_EMBEDDINGS_FILE
from airflow_provider_sft.contract.outcome import ModelKind, VllmVerdict
from airflow_provider_sft.contract.vllm import find_served_base, judge, judge_adapter, judge_model
from airflow_provider_sft.contract.vllm_adapter import Adapter
from trainer.export.merge import MergePlan
from trainer.export.model_writer import copy_companions, write_model
from trainer.export.obstacles import refuse_adapter, refuse_merge
from trainer.export.portable import Form, build_form
from trainer.export.source import Source, read_source
from trainer.export.switch import exclusive, publish_directory, staging, switch_files
from trainer.export.tensor_writer import write_bytes, write_tensor_file
from trainer.export.tensors import OutTensor
from trainer.export.vocabulary import Vocabulary, read_vocabulary
from trainer.files import make_readable

ExportMode = Literal["adapter", "merged", "both"]

MERGED_DIR = "merged"
BASE_DIR = "base"
CHECKPOINT_EXPORTS_DIR = "vllm"

_CHECKPOINT = re.compile(r"checkpoint-\d+")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class ExportOutcome:
    """What was written. `model_path` is what vLLM is pointed at, `files` are relative to the exported directory."""

    model_path: Path
    model_kind: ModelKind
    vllm_verdict: list[VllmVerdict]
    files: list[str]
    notices: list[str] = field(default_factory=list)


def export_for_vllm(
    directory: Path,
    *,
    num_new_tokens: int | None = None,
    mode: ExportMode = "adapter",
    base_model_dir: Path | None = None,
    target_dir: Path | None = None,
    before_switch: Callable[[Path], None] | None = None,
) -> ExportOutcome:
    """Make an adapter fit for vLLM, in place or in a directory of its own. A second call changes nothing.

    :param num_new_tokens: rows by which the vocabulary grew; None reads added_tokens_info.json
    :param mode: `adapter`; `merged`, a whole model in `merged/` beside an untouched adapter; or `both`, and where
        tokens were added also `base/`, the base with the tuned vocabulary, on which every release serves the adapter
    :param base_model_dir: the base model, where base_model_name_or_path does not lead to it
    :param target_dir: leave `directory` as it is, and write here
    :param before_switch: called with the directory of new files before they take the adapter's place
    :raises ExportError: the export is not possible for this adapter, or something it needs is missing
    :raises NotFoundError: there is no such directory
    :raises StorageFullError: the volume is full; what was there is still there
    """
    if not directory.is_dir():
        raise NotFoundError(f"{directory} is no directory. Name the one that holds adapter_config.json.")
    target = target_dir or directory
    target.mkdir(parents=True, exist_ok=True)
    with exclusive(target):
        if not (directory / ADAPTER_CONFIG_FILE).exists() and (directory / "config.json").exists():
            return _whole_model(directory)
        source = read_source(directory, num_new_tokens=num_new_tokens, base_model_dir=base_model_dir)
        try:
            return _export(source, target, mode, before_switch or _nothing)
        except ExportError as error:
            if mode == "merged" and error.advice == ExitCode.EXPORT.advice:
                raise ExportError(error.reason, advice="Or drop lora_post_process_for_vllm.") from error
            raise
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            raise StorageFullError(f"No space left in {target}: {_describe_need(source, mode)}.") from error


def export_checkpoints(
    directories: Sequence[Path],
    *,
    num_new_tokens: int | None = None,
    mode: ExportMode = "adapter",
    base_model_dir: Path | None = None,
    output_dir: Path | None = None,
) -> list[ExportOutcome]:
    """Export each, into `output_dir` where that is given (one directory only); a checkpoint stays resumable and gets its exported form in `vllm/checkpoint-N` beside it."""
    return [
        export_for_vllm(
            directory,
            num_new_tokens=num_new_tokens,
            mode=mode,
            base_model_dir=base_model_dir,
            target_dir=output_dir or _beside(directory),
        )
        for directory in directories
    ]


def _beside(directory: Path) -> Path | None:
    resolved = directory.resolve()
    is_checkpoint = _CHECKPOINT.fullmatch(resolved.name) and (resolved / "trainer_state.json").exists()
    return resolved.parent / CHECKPOINT_EXPORTS_DIR / resolved.name if is_checkpoint else None


def _whole_model(directory: Path) -> ExportOutcome:
    sentence = (
        f"{directory} holds a whole model: a full fine-tune loads in vLLM as it is, and nothing was changed."
    )
    verdict = judge_model(read_json_object(directory / "config.json"))
    return ExportOutcome(directory, "full", verdict, [], [sentence])


def _nothing(_stage: Path) -> None:
    """Nobody wants to know."""


def _export(
    source: Source, target: Path, mode: ExportMode, before_switch: Callable[[Path], None]
) -> ExportOutcome:
    vocabulary = read_vocabulary(source)
    if mode == "merged":
        refuse_merge(source)
        files = _write_merged(source, vocabulary, target)
        verdict = judge_model(read_json_object(target / MERGED_DIR / "config.json"))
        return ExportOutcome(target / MERGED_DIR, "merged", verdict, files)
    refuse_adapter(source)
    form = build_form(source, vocabulary)
    _refuse_unserved(source, vocabulary, form)
    files, notices, base = [], list(form.notices), source.base.directory if source.base else None
    if mode == "both":
        files += _write_merged(source, vocabulary, target)
        if vocabulary.num_new:
            files += _write_base(source, vocabulary, form, target)
            base = target / BASE_DIR
        notices = _describe_both(target, with_base=bool(vocabulary.num_new))
    files = _write_adapter(source, vocabulary, form, target, before_switch) + files
    return ExportOutcome(target, "adapter", judge_adapter(target, base=base), files, notices)


def _refuse_unserved(source: Source, vocabulary: Vocabulary, form: Form) -> None:
    """Rows of added tokens that vLLM ignores refuse nothing: their file is wanted all the same.

    :raises ExportError: no measured release applies what would be written
    """
    adapter = Adapter(
        directory=source.directory,
        config=form.config,
        tensors={tensor.name: _header(tensor) for tensor in form.tensors},
        new_embeddings={tensor.name: _header(tensor) for tensor in form.new_embeddings},
        new_embedding_size=vocabulary.size,
        base=find_served_base(source.config, source.base.directory if source.base else None),
    )
    verdicts = judge(adapter)
    outcomes = {verdict["verdict"] for verdict in verdicts}
    if "loads_right" in outcomes or (vocabulary.num_new and "loads_wrong" in outcomes):
        return
    raise ExportError(
        f"No measured release of vLLM applies this adapter right: {verdicts[-1]['reason']}",
        advice="Set vllm_export to 'merged', or drop lora_post_process_for_vllm.",
    )


def _header(tensor: OutTensor) -> TensorEntry:
    return TensorEntry(Path(), tensor.dtype, tensor.shape, 0, 0)


def _write_adapter(
    source: Source,
    vocabulary: Vocabulary,
    form: Form,
    target: Path,
    before_switch: Callable[[Path], None],
) -> list[str]:
    names = [
        ADAPTER_CONFIG_FILE,
        ADAPTER_WEIGHTS_FILE,
        *([NEW_EMBEDDINGS_FILE] if form.new_embeddings else []),
    ]
    if target == source.directory and _is_exported(source, form):
        _open_to_others(target / name for name in names)
        return names
    with staging(target) as stage:
        config = json.dumps(form.config, indent=2, sort_keys=True).encode()
        write_bytes(stage / ADAPTER_CONFIG_FILE, config)
        write_tensor_file(stage / ADAPTER_WEIGHTS_FILE, form.tensors, source.file.metadata)
        if form.new_embeddings:
            write_tensor_file(stage / NEW_EMBEDDINGS_FILE, form.new_embeddings, {"format": "pt"})
        if target != source.directory:
            copy_companions(source.directory, stage, also=(ADDED_TOKENS_FILE, "README.md"))
        if vocabulary.num_new and not (source.directory / ADDED_TOKENS_FILE).exists():
            record = {"num_new_tokens": vocabulary.num_new, "new_embedding_size": vocabulary.size}
            write_bytes(stage / ADDED_TOKENS_FILE, json.dumps(record).encode())
        before_switch(stage)
        switch_files(target)
    return names


def _is_exported(source: Source, form: Form) -> bool:
    """Whether every tensor is where it was under the name it had, so that there is nothing to write."""
    return (
        form.config == source.config
        and {tensor.name: tensor.kept for tensor in form.tensors} == source.file.tensors
        and {tensor.name: tensor.kept for tensor in form.new_embeddings} == source.new_embeddings.tensors
    )


def _write_merged(source: Source, vocabulary: Vocabulary, target: Path) -> list[str]:
    return _write_model(MergePlan(source, vocabulary).add_adapter(), target, MERGED_DIR)


def _write_base(source: Source, vocabulary: Vocabulary, form: Form, target: Path) -> list[str]:
    plan = MergePlan(source, vocabulary).add_new_tokens(carried=form.carried)
    return _write_model(plan, target, BASE_DIR)


def _write_model(plan: MergePlan, target: Path, name: str) -> list[str]:
    with staging(target) as stage:
        staged = stage.with_name(name)
        staged.mkdir()
        write_model(plan, staged)
        names = [f"{name}/{path.name}" for path in sorted(staged.iterdir())]
        publish_directory(staged, target / name)
    return names


def _describe_both(target: Path, *, with_base: bool) -> list[str]:
    notices = [f"{target / MERGED_DIR} is the whole model: `vllm serve {target / MERGED_DIR}`."]
    if with_base:
        notices.append(
            f"The adapter's added tokens are in {target / BASE_DIR}: `vllm serve {target / BASE_DIR} --enable-lora "
            f"--lora-modules tuned={target}`."
        )
    return notices


def _describe_need(source: Source, mode: ExportMode) -> str:
    needed = sum(entry.end - entry.begin for entry in source.file.tensors.values())
    if mode != "adapter" and source.base is not None:
        needed += 2 * sum(path.stat().st_size for path in source.base.weight_files)
    return f"the export needs up to {needed / 1e9:.2f} GB beside what is there"


def _open_to_others(paths: Iterable[Path]) -> None:
    """Mode 0666 & ~umask: safetensors writes 0600, which the user of a server cannot read."""
    mode = 0o666 & ~_umask()
    for path in paths:
        if stat.S_IMODE(path.stat().st_mode) != mode:
            make_readable(path, mode)


def _umask() -> int:
    """Read, not set: the umask belongs to the whole process, threads included."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        status = ""
    found = re.search(r"^Umask:\s*([0-7]+)", status, re.MULTILINE)
    return int(found[1], 8) if found else 0o022
