"""Which architectures a release takes LoRA for, read from its model classes: `architectures.py SOURCES RELEASE…`
prints the table that contract/vllm_architectures.json holds."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

TABLE_FILE = Path(__file__).parents[2] / "airflow_provider_sft" / "contract" / "vllm_architectures.json"
CODES = {
    "-": "not served by this release",
    "n": "no LoRA",
    "l": "LoRA on linear layers",
    "i": "and on embed_tokens",
    "e": "and on embed_tokens and lm_head",
    "w": "and on wte and lm_head",
}


class _Model(NamedTuple):
    bases: list[str]
    embedding_modules: dict[str, str] | None
    imports: dict[str, tuple[str, str]]


def read_table(sources: Path) -> dict[str, str]:
    """Architecture → code, for every architecture that the release's registry lists."""
    models_dir = sources / "vllm" / "model_executor" / "models"
    models = _read_models(models_dir)
    table = {}
    for node in ast.walk(ast.parse((models_dir / "registry.py").read_text())):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            table |= dict(_registered(node.value, models))
    return table


def _registered(entries: ast.Dict, models: dict[tuple[str, str], _Model]) -> list[tuple[str, str]]:
    found = []
    for key, value in zip(entries.keys, entries.values, strict=True):
        if isinstance(key, ast.Constant) and isinstance(value, ast.Tuple):
            place = tuple(part.value for part in value.elts if isinstance(part, ast.Constant))
            if place in models:
                found.append((key.value, _code(*_support(models, place))))
    return found


def _code(lora: bool, embeddings: dict[str, str] | None) -> str:
    names = set(embeddings or {})
    if not lora:
        return "n"
    if "lm_head" in names and names & {"embed_tokens", "wte"}:
        return "e" if "embed_tokens" in names else "w"
    return "i" if "embed_tokens" in names else "l"


def _read_models(models_dir: Path) -> dict[tuple[str, str], _Model]:
    models = {}
    for path in models_dir.rglob("*.py"):
        module = ".".join(path.relative_to(models_dir).with_suffix("").parts)
        tree = ast.parse(path.read_text())
        imports = {
            alias.asname or alias.name: ((node.module or "").rpartition(".")[2], alias.name)
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                bases = [ast.unparse(base).partition("[")[0].split(".")[-1] for base in node.bases]
                models[module, node.name] = _Model(bases, _embedding_modules(node), imports)
    return models


def _embedding_modules(node: ast.ClassDef) -> dict[str, str] | None:
    for statement in node.body:
        targets = (
            statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        )
        value = getattr(statement, "value", None)
        named = any(isinstance(target, ast.Name) and target.id == "embedding_modules" for target in targets)
        if named and isinstance(value, ast.Dict):
            return ast.literal_eval(value)
    return None


def _support(
    models: dict[tuple[str, str], _Model], place: Any, seen: tuple[Any, ...] = ()
) -> tuple[bool, dict[str, str] | None]:
    """Whether a class, or one it inherits from, is SupportsLoRA; and the nearest embedding_modules."""
    model = models[place]
    lora, embeddings = "SupportsLoRA" in model.bases, model.embedding_modules
    for base in model.bases:
        parent = (place[0], base) if (place[0], base) in models else model.imports.get(base)
        if parent in models and parent not in seen:
            parent_lora, parent_embeddings = _support(models, parent, (*seen, place))
            lora |= parent_lora
            embeddings = parent_embeddings if embeddings is None else embeddings
    return lora, embeddings


def main(sources: str, *releases: str) -> None:
    tables = {release: read_table(Path(sources) / release) for release in releases}
    names = sorted({name for table in tables.values() for name in table})
    rows = {name: "".join(tables[release].get(name, "-") for release in releases) for name in names}
    codes = json.dumps(CODES, indent=2).replace("\n", "\n ")
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    print(
        f'{{\n "releases": {json.dumps(releases)},\n "codes": {codes},\n "architectures": {{\n{lines}\n }}\n}}'
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
