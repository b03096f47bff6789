"""`python -m trainer.schema`: write config_schema.json and docs/config.md, or with --check say whether they are stale."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from trainer.schema.assemble import assemble_schema, dump_schema
from trainer.schema.docs import render_docs

_ROOT = Path(__file__).resolve().parents[2]
SCHEMA_PATH = _ROOT / "airflow_provider_sft" / "contract" / "config_schema.json"
DOCS_PATH = _ROOT / "docs" / "config.md"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.schema", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is stale")
    options = parser.parse_args(argv)
    schema = assemble_schema()
    stale = [
        path
        for path, text in ((SCHEMA_PATH, dump_schema(schema)), (DOCS_PATH, render_docs(schema)))
        if not _holds(path, text, write=not options.check)
    ]
    for path in stale:
        verb = "is stale. Run `python -m trainer.schema`." if options.check else "is written."
        sys.stdout.write(f"{path.relative_to(_ROOT)} {verb}\n")
    return 1 if stale and options.check else 0


def _holds(path: Path, text: str, *, write: bool) -> bool:
    """Whether `path` held `text` already."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return True
    if write:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return False


if __name__ == "__main__":
    raise SystemExit(main())
