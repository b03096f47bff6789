"""What vLLM's releases differ in when they load a LoRA adapter. Measured on the released wheels (docs/vllm.md).

Data and look-ups alone; `vllm` judges with it.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import NamedTuple

from airflow_provider_sft.contract.errors import ConfigError

MAX_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes in every release
DEFAULT_MAX_LORA_RANK = 16
DEFAULT_EXTRA_VOCABULARY = 256
MAX_EXTRA_VOCABULARY = 512

TABLE_VARIABLE = "SFT_VLLM_TABLE"  # the environment may name a file with further releases
TABLE_FILE = Path(__file__).with_name("vllm_architectures.json")
_EMBEDDINGS_TAKEN = {
    "e": frozenset({"embed_tokens", "lm_head"}),
    "w": frozenset({"wte", "lm_head"}),
    "i": frozenset({"embed_tokens"}),
}


# Rules of the verdict; the table says since which release each holds.
NEW_CHECKPOINT_NAMES = "new_checkpoint_names"  # `model.language_model.` of transformers 4.52 is known
EXPERT_LORA = "expert_lora"  # expert layers take LoRA
NO_EXTRA_VOCABULARY = "no_extra_vocabulary"  # new_embeddings.safetensors is ignored, widths must fit
CLASSIFIER_HEADS = "classifier_heads"  # modules_to_save may name classifier or score
LARGE_VOCABULARY = "large_vocabulary"  # 258,048 tokens under LoRA instead of 257,024
PATTERNS = "patterns"  # rank and alpha patterns are applied; what is not implemented is refused
TEXT_NAMES = "text_names"  # a multimodal class takes the names of the text-only one


class ArchitectureSupport(NamedTuple):
    """What a release takes for an architecture. `known` is False for one that its table does not list."""

    known: bool
    lora: bool
    embeddings: frozenset[str]
    keeps_experts_fused: bool


def version_key(version: str) -> tuple[int, ...]:
    """`0.30.1.post1` → (0, 30, 1)

    :raises ConfigError: not a version number
    """
    parts = [part for part in version.strip().removeprefix("v").split(".") if part.isdigit()]
    if not parts:
        raise ConfigError(f"vLLM version {version!r} is no version number. Give one like '0.30' or '0.33.0'.")
    return tuple(int(part) for part in parts)


def measured_releases() -> list[str]:
    """Oldest first."""
    return list(_table().releases)


def find_releases(version: str) -> list[str]:
    """The measured releases that a version means: `0.20` all of 0.20, `0.20.9` the newest of 0.20. Empty: not measured.

    :raises ConfigError: older than what was measured
    """
    key, releases = version_key(version), measured_releases()
    if key < version_key(releases[0])[: len(key)]:
        raise ConfigError(
            f"vLLM {version} is older than {releases[0]}, the oldest release measured. Use a newer one."
        )
    if meant := [release for release in releases if version_key(release)[: len(key)] == key]:
        return meant
    patches = [
        release for release in releases if version_key(release)[:2] == key[:2] and version_key(release) < key
    ]
    return patches[-1:]


def label_of(release: str) -> str:
    """`0.12` for 0.12.0 where no other patch of it was measured, else the whole version."""
    minor = version_key(release)[:2]
    others = [other for other in measured_releases() if version_key(other)[:2] == minor and other != release]
    return release.removesuffix(".0") if not others and release.count(".") > 1 else release


def follows(release: str, rule: str) -> bool:
    return version_key(release) >= version_key(_table().rules[rule])


def support_of(architecture: str, release: str) -> ArchitectureSupport:
    code = _table().columns[release].get(architecture, "-")
    return ArchitectureSupport(
        known=code != "-",
        lora=code not in "-n",
        embeddings=_EMBEDDINGS_TAKEN.get(code.lower(), frozenset()),
        keeps_experts_fused=code.isupper(),
    )


def smallest_max_rank(rank: int) -> int | None:
    """The least --max-lora-rank that holds `rank`; None when vLLM takes none so large."""
    return next((choice for choice in MAX_LORA_RANKS if choice >= rank), None)


class _Table(NamedTuple):
    releases: list[str]
    rules: dict[str, str]
    columns: dict[str, dict[str, str]]


_chosen: list[Path] = []


def use_table(path: Path) -> None:
    """Read further releases from this file, for the rest of the process, instead of the environment's."""
    _chosen[:] = [path]


def _table() -> _Table:
    return _read_table(str(_chosen[0]) if _chosen else os.environ.get(TABLE_VARIABLE, ""))


@functools.cache
def _read_table(extra: str) -> _Table:
    """The package's table, and over it the releases of the user's."""
    rules: dict[str, str] = {}
    columns: dict[str, dict[str, str]] = {}
    for path in (TABLE_FILE, *([Path(extra)] if extra else [])):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            rules |= document["rules"]
            for index, release in enumerate(document["releases"]):
                codes = document["architectures"].items()
                columns[release] = {name: row[index] for name, row in codes}
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise ConfigError(
                f"The table of vLLM releases {str(path)!r} cannot be read ({error!r}). "
                "Make it with `python -m tools.vllm_table --out FILE`."
            ) from error
    releases = sorted(columns, key=version_key)
    return _Table(releases, rules, columns)
