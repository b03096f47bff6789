"""How well does a model answer rows it never saw? `python -m trainer.evaluate --model DIR --data FILE`.

It answers each row greedily and compares with the row's own answer. The outcome is one JSON object on stdout, and in
--output. A wrong argument or file costs no import of torch. Exit codes are the trainer's.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from airflow_provider_sft.contract.errors import ConfigError, DataError, InternalError, NotFoundError
from airflow_provider_sft.contract.plain_text import plain_text
from trainer.answers import Question, build_question, score
from trainer.data.files import locate_files
from trainer.data.rows import read_chunks
from trainer.failures import classify
from trainer.files import write_json
from trainer.streams import log_to_stderr, print_line

log = logging.getLogger("trainer")


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """`num_rows`, the scores of `answers.score`, `wall_s`, and the first --samples rows with their answers."""
    questions = read_questions(options)
    started_at = time.monotonic()
    answers = answer_all(questions, options)
    expected = [question.expected for question in questions]
    return {
        "model": options.model,
        "adapter": options.adapter,
        "data": options.data,
        "num_rows": len(questions),
        **{name: round(value, 4) for name, value in score(answers, expected).items()},
        "wall_s": round(time.monotonic() - started_at, 1),
        "samples": [
            {"prompt": _last_text(question.prompt), "expected": question.expected, "answer": answer}
            for question, answer in list(zip(questions, answers, strict=True))[: options.samples]
        ],
    }


def read_questions(options: argparse.Namespace) -> list[Question]:
    if options.adapter and not Path(options.adapter, "adapter_config.json").is_file():
        raise NotFoundError(
            f"--adapter {options.adapter} holds no adapter_config.json. Name the adapter's directory."
        )
    questions = [
        build_question(
            row,
            where=chunk.where(index),
            text_field=options.text_field,
            response_template=options.response_template,
        )
        for path in locate_files("--data", [options.data], os.environ).files
        for chunk in read_chunks(path)
        for index, row in enumerate(chunk.rows)
    ][: options.limit]
    if not questions:
        raise DataError(f"--data {options.data} holds no rows. Give at least one.")
    return questions


def answer_all(questions: Sequence[Question], options: argparse.Namespace) -> list[str]:
    from trainer.generate import Generator

    generator = Generator.load(options.model, options.adapter, max_new_tokens=options.max_new_tokens)
    return generator.answer([question.prompt for question in questions], batch_size=options.batch_size)


def parse_options(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="python -m trainer.evaluate", allow_abbrev=False)
    parser.add_argument("--model", required=True, help="directory or Hub id of the model")
    parser.add_argument("--adapter", help="directory of a LoRA adapter for it")
    parser.add_argument("--data", required=True, help="rows the model was never trained on")
    parser.add_argument("--output", type=Path, help="JSON file for the outcome")
    parser.add_argument("--text-field", help="the column, if prompt and answer are one text")
    parser.add_argument("--response-template", help="what precedes the answer in that text")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="an answer's longest (default 64)")
    parser.add_argument("--batch-size", type=int, default=16, help="rows at a time (default 16)")
    parser.add_argument("--limit", type=int, help="only so many rows")
    parser.add_argument("--samples", type=int, default=3, help="answers to show (default 3)")
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(f"Unknown argument {unknown[0]!r}")
    return options


class _Parser(argparse.ArgumentParser):
    """Argparse would exit with 2, which says nothing of a config."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. See {self.prog} --help.")


def _last_text(prompt: str | list[dict[str, Any]]) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def main(argv: Sequence[str]) -> int:
    log_to_stderr("INFO", "%(levelname)s %(name)s: %(message)s")
    model = "the model"
    try:
        options = parse_options(argv)
        model = options.model
        outcome = evaluate(options)
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            write_json(options.output, outcome)
    except Exception as error:
        failure = classify(error, model=model)
        if isinstance(failure, InternalError):
            log.exception("Unexpected failure of the evaluation")
        log.error("%s %s", failure.reason, failure.advice)  # noqa: TRY400  # the sentence is for people
        return int(failure.exit_code)
    print_line(plain_text(json.dumps(outcome, ensure_ascii=False)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
