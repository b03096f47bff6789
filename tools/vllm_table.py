"""The table of what each vLLM release takes, read from the released wheels: `make vllm-table` or
`python -m tools.vllm_table [--out FILE] [RELEASE …]`. docs/vllm.md says how to add a release.

A release's registry names a class for each architecture. Whether that class takes LoRA, and on which embeddings, is
in its own body or in a class that it inherits from.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from airflow_provider_sft.contract.vllm_releases import TABLE_FILE, version_key
from tools.vllm import CACHE_DIR, fetch_sources

CODES = {
    "-": "not served by this release",
    "n": "no LoRA",
    "l": "LoRA on linear layers",
    "i": "and on embed_tokens",
    "e": "and on embed_tokens and lm_head",
    "w": "and on wte and lm_head",
    "L, I, E, W": "the same, and experts are kept fused",
}
# What a rule of the verdict looks like in the source of the releases that follow it: file, text, whether it is there.
RULES = {
    "new_checkpoint_names": ("vllm/model_executor/models/gemma3_mm.py", "model.language_model.", True),
    "expert_lora": ("vllm/lora/layers/fused_moe.py", "class FusedMoEWithLoRA", True),
    "no_extra_vocabulary": ("vllm/config/lora.py", "lora_extra_vocab_size", False),
    "classifier_heads": ("vllm/lora/peft_helper.py", '"classifier", "score"', True),
    "large_vocabulary": ("vllm/lora/layers/logits_processor.py", "258048", True),
    "patterns": ("vllm/lora/peft_helper.py", "rank_pattern", True),
    "text_names": ("vllm/lora/model_manager.py", "_get_text_lora_names", True),
}
_MODELS = "vllm.model_executor.models"


class _Found(NamedTuple):
    """What a class says of itself, or inherits."""

    lora: bool = False
    embeddings: frozenset[str] | None = None
    fused: bool | None = None


class Release:
    """One release's Python files."""

    def __init__(self, sources: Path) -> None:
        self.sources = sources
        self._modules: dict[str, Module | None] = {}
        self._found: dict[tuple[str, str], _Found] = {}

    def read_table(self) -> dict[str, str]:
        """Architecture → code, for every architecture of the registry."""
        registry = self.module(f"{_MODELS}.registry")
        if registry is None:
            raise SystemExit(f"{self.sources} has no registry of models. Read where this release keeps it.")
        return {name: _code(self.find(place)) for name, place in _registered(registry.tree)}

    def follows(self, rule: str) -> bool:
        path, text, wanted = RULES[rule]
        file = self.sources / path
        return file.exists() and (text in file.read_text(encoding="utf-8")) is wanted

    def find(self, place: tuple[str, str]) -> _Found:
        """What the class at (module, name) says, with what it inherits."""
        if place not in self._found:
            self._found[place] = _Found()  # for a circle of imports
            self._found[place] = self._find(place)
        return self._found[place]

    def _find(self, place: tuple[str, str]) -> _Found:
        module = self.module(place[0])
        if module is None:
            return _Found()
        if (node := module.classes.get(place[1])) is None:
            return self._follow(module, place[1])
        found = _own(node)
        for base in node.bases:
            name = ast.unparse(base).partition("[")[0]
            if name.split(".")[-1] == "SupportsLoRA":
                found = found._replace(lora=True)
            else:
                found = _inherit(found, self.find((place[0], name)))
        return found

    def _follow(self, module: Module, name: str) -> _Found:
        """A name that is imported, under conditions or not; the first place that says anything."""
        first, _, attribute = name.partition(".")
        for source, imported in module.imports.get(first, ()):
            target = (f"{source}.{imported}", attribute) if attribute else (source, imported)
            if (found := self.find(target)) != _Found():
                return found
        return _Found()

    def module(self, name: str) -> Module | None:
        if name not in self._modules:
            path = self.sources / name.replace(".", "/")
            files = (
                path.with_suffix(".py") if path.suffix == "" else path.parent / f"{path.name}.py",
                path / "__init__.py",
            )
            file = next((file for file in files if file.is_file()), None)
            self._modules[name] = Module(name, file) if file else None
        return self._modules[name]


class Module:
    """The classes that one file defines, and the names that it imports from vLLM."""

    def __init__(self, name: str, file: Path) -> None:
        self.package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        self.tree = ast.parse(file.read_text(encoding="utf-8"))

    @cached_property
    def classes(self) -> dict[str, ast.ClassDef]:
        return {node.name: node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef)}

    @cached_property
    def imports(self) -> dict[str, list[tuple[str, str]]]:
        found: dict[str, list[tuple[str, str]]] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom):
                source = self._absolute(node)
                for alias in node.names:
                    found.setdefault(alias.asname or alias.name, []).append((source, alias.name))
        return found

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.package.split(".")
        parents = parts[: len(parts) - node.level + 1]
        return ".".join([*parents, *([node.module] if node.module else [])])


def _registered(tree: ast.Module) -> Iterator[tuple[str, tuple[str, str]]]:
    for node in ast.walk(tree):
        value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
        if not isinstance(value, ast.Dict):
            continue
        for key, place in zip(value.keys, value.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(place, ast.Tuple):
                module, name = (ast.literal_eval(part) for part in place.elts[:2])
                yield key.value, (module if module.startswith("vllm.") else f"{_MODELS}.{module}", name)


def _own(node: ast.ClassDef) -> _Found:
    found = _Found()
    for statement in node.body:
        targets = (
            statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        )
        names = {target.id for target in targets if isinstance(target, ast.Name)}
        value = getattr(statement, "value", None)
        if "embedding_modules" in names and isinstance(value, ast.Dict):
            found = found._replace(embeddings=frozenset(ast.literal_eval(value)))
        if "is_3d_moe_weight" in names and isinstance(value, ast.Constant):
            found = found._replace(fused=bool(value.value))
        if "supports_lora" in names and isinstance(value, ast.Constant):
            found = found._replace(lora=bool(value.value))
    return found


def _inherit(found: _Found, parent: _Found) -> _Found:
    return _Found(
        found.lora or parent.lora,
        parent.embeddings if found.embeddings is None else found.embeddings,
        parent.fused if found.fused is None else found.fused,
    )


def _code(found: _Found) -> str:
    names = found.embeddings or frozenset()
    if not found.lora:
        return "n"
    code = "i" if "embed_tokens" in names else "l"
    if "lm_head" in names and names & {"embed_tokens", "wte"}:
        code = "e" if "embed_tokens" in names else "w"
    return code.upper() if found.fused else code


def build_table(releases: list[str]) -> dict[str, object]:
    """:raises SystemExit: a release no longer looks as the verdict's rules want it"""
    ordered = sorted(releases, key=version_key)
    with ProcessPoolExecutor() as pool:
        tables = dict(zip(ordered, pool.map(_read_release, ordered), strict=True))
    names = sorted({name for table in tables.values() for name in table})
    return {
        "releases": ordered,
        "codes": CODES,
        "rules": {rule: _first(ordered, rule) for rule in RULES},
        "architectures": {name: "".join(table.get(name, "-") for table in tables.values()) for name in names},
    }


def _read_release(release: str) -> dict[str, str]:
    return Release(CACHE_DIR / release).read_table()


def _first(releases: list[str], rule: str) -> str:
    """The release since which a rule holds."""
    following = [release for release in releases if Release(CACHE_DIR / release).follows(rule)]
    if not following or following != releases[-len(following) :]:
        raise SystemExit(
            f"Rule {rule!r} does not hold from one release on: {following}. Read {RULES[rule][0]} again."
        )
    return following[0]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Read what vLLM releases take into a table.")
    parser.add_argument("releases", nargs="*", metavar="RELEASE", help="added to those of the table")
    parser.add_argument(
        "--out", type=Path, default=TABLE_FILE, metavar="FILE", help="by default the package's own table"
    )
    arguments = parser.parse_args(argv)
    known = json.loads(TABLE_FILE.read_text(encoding="utf-8"))["releases"]
    releases = list(dict.fromkeys([*known, *arguments.releases]))
    for release in releases:
        fetch_sources(release)
    table = json.dumps(build_table(releases), indent=1)
    arguments.out.write_text(table + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
