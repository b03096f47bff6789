"""`python -m trainer.export DIR …`: the export of a run, on an adapter made elsewhere."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from airflow_provider_sft.contract.exit_codes import ExitCode
from airflow_provider_sft.contract.plain_text import plain_lines, plain_text
from airflow_provider_sft.contract.vllm import describe_verdict
from trainer.export.run import ExportOutcome, export_checkpoints
from trainer.failures import classify


def main(argv: list[str]) -> int:
    parser = _build_parser()
    arguments = parser.parse_args(argv)
    if arguments.output_dir is not None and len(arguments.directories) > 1:
        parser.error("--output-dir takes one DIR. Call it once for each.")
    try:
        outcomes = export_checkpoints(
            arguments.directories,
            num_new_tokens=arguments.num_new_tokens,
            mode=arguments.mode,
            base_model_dir=arguments.base,
            output_dir=arguments.output_dir,
        )
    except Exception as error:  # noqa: BLE001  # whatever it is, it ends in a sentence and an exit code
        known = classify(error, model=str(arguments.base))
        sys.stderr.write(plain_lines(_in_flags(f"{known.reason}\n{known.advice}".rstrip())) + "\n")
        return int(known.exit_code)
    for outcome in outcomes:
        sys.stdout.write(plain_text(_describe(outcome)))
    return int(ExitCode.SUCCEEDED)


class _Parser(argparse.ArgumentParser):
    """Argparse's own exit code is 2, which the contract leaves to argparse alone."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        self.exit(int(ExitCode.CONFIG), f"{message}\n")


def _build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m trainer.export", description="Make an adapter that PEFT saved fit for vLLM."
    )
    parser.add_argument(
        "directories",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="holds adapter_config.json; exported in place, a checkpoint into vllm/ beside it",
    )
    parser.add_argument(
        "--num-new-tokens",
        type=int,
        metavar="N",
        help="rows by which the vocabulary grew; left out, DIR/added_tokens_info.json says",
    )
    parser.add_argument("--mode", choices=("adapter", "merged", "both"), default="adapter")
    parser.add_argument(
        "--base", type=Path, metavar="DIR", help="the base model, where the adapter does not say"
    )
    parser.add_argument(
        "--output-dir",
        "--output_model_path",
        type=Path,
        metavar="DIR",
        help="where to write, instead of in place",
    )
    return parser


def _in_flags(text: str) -> str:
    """A sentence about config keys as one about this command's flags."""
    text = text.replace(
        "Set vllm_export to 'merged', or drop lora_post_process_for_vllm", "Use --mode merged"
    )
    text = re.sub(
        r"\b([Ss])et vllm_export to '(\w+)'", lambda m: f"{'U' if m[1] == 'S' else 'u'}se --mode {m[2]}", text
    )
    text = re.sub(r"Drop lora_post_process_for_vllm, or (\w)", lambda m: m[1].upper(), text)
    text = text.replace("Or drop lora_post_process_for_vllm.", "")
    return text.replace("or 'both'", "or both").replace("Drop lora_post_process_for_vllm.", "")


def _describe(outcome: ExportOutcome) -> str:
    lines = [f"{outcome.model_path}: {outcome.model_kind}, {len(outcome.files)} files"]
    lines += map(_in_flags, outcome.notices)
    lines += [describe_verdict(verdict) for verdict in outcome.vllm_verdict]
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
