"""docs/config.md from the schema: every key with type, default and meaning, a table a section."""

from __future__ import annotations


def render_docs(schema):
    return ""
