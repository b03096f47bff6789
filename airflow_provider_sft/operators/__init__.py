"""Operators that tune language models."""
