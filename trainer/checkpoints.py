"""Checkpoints that can be trusted: staged, flushed, renamed, and described by a manifest that is written first
inside the staging directory and becomes visible with the rename. Stdlib only.

A checkpoint counts when every file in its manifest is there with its size and digest. One without a manifest
(left by plain transformers or fms-hf-tuning) counts when its safetensors headers and `trainer_state.json` are whole.
None counts that would import more than tensors need.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TypeGuard

from trainer.files import (
    digest_json,
    find_damage,
    find_missing,
    read_json,
    sync_and_describe,
    sync_directory,
    write_json,
)
from trainer.model_damage import find_tensor_flaw
from trainer.pickles import find_unsafe_pickles

MANIFEST_FILE = "manifest.json"
STAGING_DIR = ".staging"
_STATE_FILE = "trainer_state.json"
_NAME = re.compile(r"checkpoint-(\d+)")
# Of a volume that does not answer now: the retry may read what is there.
_NOT_NOW = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
_SHOWN_SKIPS = 5


class CheckpointStore:
    """The checkpoints of one output_dir.

    :param keep: how many to keep (`save_total_limit`); None keeps all
    """

    def __init__(self, output_dir: Path, *, keep: int | None = None) -> None:
        self.output_dir = output_dir
        self.staging_dir = output_dir / STAGING_DIR
        self.keep = keep
        # Checkpoints whose content was looked at: how their files were then, and whether they were whole.
        self._seen: dict[str, tuple[str, bool]] = {}

    def publish(self, step: int, facts: dict[str, Any], *, best: Path | None = None) -> Path:
        """Make `.staging/checkpoint-<step>` the newest checkpoint, then drop the oldest beyond `keep`.

        :param facts: what the manifest says besides step and files: world size, config digest
        :param best: never dropped (`load_best_model_at_end`)
        """
        staged, final = self.staging_dir / f"checkpoint-{step}", self.output_dir / f"checkpoint-{step}"
        (staged / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing reads
        (staged / MANIFEST_FILE).unlink(missing_ok=True)
        files = sync_and_describe(staged)
        write_json(staged / MANIFEST_FILE, {"step": step, **facts, "files": files})
        aside = self._move_aside(final)
        staged.rename(final)
        sync_directory(self.output_dir)
        shutil.rmtree(aside, ignore_errors=True)
        self._seen[final.name] = (_fingerprint(final), True)
        self._drop_oldest(best)
        return final

    def newest_valid(self, say: Callable[[str], None]) -> Path | None:
        """The newest checkpoint that is whole; `say` hears of those that were skipped, and why."""
        skipped, found = 0, None
        for checkpoint in self._newest_first():
            if not (flaw := find_flaw(checkpoint) or _misnamed(checkpoint)):
                found = checkpoint
                break
            skipped += 1
            if skipped <= _SHOWN_SKIPS:
                say(f"Skipped {checkpoint.name}: {flaw}.")
        if skipped > _SHOWN_SKIPS:
            say(f"Skipped {skipped - _SHOWN_SKIPS} more checkpoints that are not whole.")
        return found

    def newest(self) -> Path | None:
        """The newest published one; whether it is whole, `newest_valid` tells."""
        return next(iter(self._newest_first()), None)

    def clear_staging(self) -> None:
        shutil.rmtree(self.staging_dir, ignore_errors=True)

    def _newest_first(self) -> list[Path]:
        return sorted(_checkpoint_dirs(self.output_dir), key=checkpoint_step, reverse=True)

    def _drop_oldest(self, best: Path | None) -> None:
        if self.keep is None:
            return
        # The ones kept must be whole, so that a broken one does not push out a good one, least of all the last.
        whole = [path for path in self._newest_first() if self._is_whole(path)]
        for checkpoint in whole[max(self.keep, 1) :]:
            if checkpoint != best:
                shutil.rmtree(self._move_aside(checkpoint))

    def _is_whole(self, checkpoint: Path) -> bool:
        """Published, and every file has its digest; one that stands as it did when it was hashed is not hashed again."""
        manifest = read_json(checkpoint / MANIFEST_FILE)
        if manifest is None or any(find_missing(checkpoint, manifest.get("files"))):
            return False
        fingerprint = _fingerprint(checkpoint)
        if self._seen.get(checkpoint.name, ("", False))[0] != fingerprint:
            self._seen[checkpoint.name] = fingerprint, not any(find_damage(checkpoint, manifest["files"]))
        return self._seen[checkpoint.name][1]

    def _move_aside(self, checkpoint: Path) -> Path:
        """Out of sight by one rename: a kill while the files go leaves nothing that looks like a checkpoint."""
        aside = self.staging_dir / f"old-{checkpoint.name}"
        if checkpoint.exists():
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.rename(aside)
        return aside


def checkpoint_step(checkpoint: Path) -> int:
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


def recorded_step(checkpoint: Path) -> int:
    """The step that the checkpoint's state says, whatever its directory is called."""
    step = (read_json(checkpoint / _STATE_FILE) or {}).get("global_step")
    return step if _is_step(step) else checkpoint_step(checkpoint)


def _is_step(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _misnamed(checkpoint: Path) -> str | None:
    step = recorded_step(checkpoint)
    if step == checkpoint_step(checkpoint):
        return None
    return f"its {_STATE_FILE} is that of step {step}; rename it to checkpoint-{step} to resume from it"


def find_flaw(checkpoint: Path) -> str | None:
    """Why `checkpoint` cannot be trusted, or None.

    :raises OSError: the volume does not answer now
    """
    try:
        return _find_flaw(checkpoint)
    except OSError as error:
        if error.errno in _NOT_NOW:
            raise
        return f"{Path(error.filename or checkpoint).name} cannot be read ({error.strerror})"


def _find_flaw(checkpoint: Path) -> str | None:
    if not checkpoint.is_dir():
        return "it does not exist"
    manifest = read_json(checkpoint / MANIFEST_FILE)
    if manifest is None and (checkpoint / MANIFEST_FILE).exists():
        return "its manifest cannot be read"
    if manifest is None:
        return next(_foreign_flaws(checkpoint), None)
    return next(chain(find_damage(checkpoint, manifest.get("files")), find_unsafe_pickles(checkpoint)), None)


def _foreign_flaws(checkpoint: Path) -> Iterator[str]:
    if not _is_step((read_json(checkpoint / _STATE_FILE) or {}).get("global_step")):
        yield f"{_STATE_FILE} is missing or damaged"
    weights = list(checkpoint.glob("*.safetensors")) + list(checkpoint.glob("pytorch_model_fsdp_*/*"))
    if not weights:
        yield "it has no weights in safetensors"
    for path in checkpoint.glob("*.safetensors"):
        if flaw := find_tensor_flaw(path):
            yield f"{path.name} is damaged: {flaw}"
    if not list(checkpoint.glob("optimizer*")):
        yield "it has no optimizer state"
    if not list(checkpoint.glob("rng_state*.pth")):
        yield "it has no random-number state"
    yield from find_unsafe_pickles(checkpoint)


def _list_files(directory: Path) -> list[Path]:
    return [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != MANIFEST_FILE]


def _fingerprint(checkpoint: Path) -> str:
    """Of what the file system knows of the files: it differs once one of them was written to, put back or replaced."""
    found = [(path.name, path.stat()) for path in _list_files(checkpoint)]
    return digest_json(
        [(name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in found]
    )


def _checkpoint_dirs(output_dir: Path) -> list[Path]:
    if not output_dir.is_dir():
        return []
    return [path for path in output_dir.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)]
