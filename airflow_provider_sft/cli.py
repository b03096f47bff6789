"""`sft-config`: what can be done with a config before anything runs. Stdlib alone, unless a command says otherwise."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from airflow_provider_sft.cli_estimate import add_estimate_parser
from airflow_provider_sft.cli_job import add_job_parser
from airflow_provider_sft.cli_pod import add_pod_parser
from airflow_provider_sft.contract.codec import Config, decode_text, encode_text, parse_config, read_text_file
from airflow_provider_sft.contract.errors import ConfigError, SFTError
from airflow_provider_sft.contract.names import CONFIG_ENV_VAR, CONFIG_PATH_ENV_VAR, MAX_ENV_CONFIG_BYTES
from airflow_provider_sft.contract.plain_text import plain_text
from airflow_provider_sft.vllm_check import add_vllm_check_parser

_EXAMPLES = """\
examples:
  sft-config validate config.json           every mistake in it, a sentence each
  sft-config encode config.json             the value of SFT_TRAINER_CONFIG_JSON_ENV_VAR
  kubectl get cm c -o jsonpath='{.data.config\\.json}' | sft-config validate -
  sft-config decode "$SFT_TRAINER_CONFIG_JSON_ENV_VAR"
  sft-config schema peft_method             one key: type, choices, default, meaning
  sft-config estimate config.json --gpus 2 --gpu-memory 80Gi   memory and storage at least
  sft-config pod config.json --image sft-trainer:1 --gpus 2    the operator's pod as YAML
  sft-config job config.json --engine trainjob --num-nodes 2 --queue-name q   the manifests of a queued job
  sft-config vllm-check DIR --vllm 0.33     whether that vLLM serves the adapter in DIR as it was trained

exit codes: 0 right; 64 the config is wrong; 66 no such file; 69 the adapter cannot be exported, or does not load right;
77 not readable; 201 storage and 202 memory cannot be enough
"""
Command = Callable[[argparse.Namespace], int]
Subparsers = Any  # argparse's own class for it is private


def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    command: Command = options.command
    try:
        return command(options)
    except SFTError as error:
        sys.stderr.write(f"{plain_text(error.reason)}\n")
        return error.exit_code
    except BrokenPipeError:  # `sft-config schema | head`
        sys.stderr.close()
        return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sft-config",
        description="Check, encode and explain the JSON config of a tuning run.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add_command in COMMANDS:
        add_command(subparsers)
    return parser


def add_subcommand(subparsers: Subparsers, name: str, command: Command, text: str) -> argparse.ArgumentParser:
    """A subcommand whose help is `text`; the caller adds its arguments."""
    parser: argparse.ArgumentParser = subparsers.add_parser(name, help=text, description=text)
    parser.set_defaults(command=command)
    return parser


def read_config_argument(file: str) -> Config:
    """The config that a FILE argument names; `-` is standard input."""
    return parse_config(read_text_argument(file), source=name_argument(file))


def read_text_argument(file: str) -> str:
    """The text that a FILE argument names.

    :raises SFTError: it cannot be read, or is not UTF-8
    """
    if file != "-":
        return read_text_file(Path(file))
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"Standard input is not UTF-8 (byte {error.start + 1}). Send UTF-8.") from None


def name_argument(file: str) -> str:
    """How a FILE argument is called in messages."""
    return "Standard input" if file == "-" else file


def _add_validate(subparsers: Subparsers) -> None:
    parser = add_subcommand(subparsers, "validate", _validate, "Check a config; print every mistake.")
    parser.add_argument("file", metavar="FILE", help="a JSON file, or - for standard input")
    parser.add_argument(
        "--extra-key",
        metavar="KEY",
        action="append",
        default=[],
        dest="extra_keys",
        help="a key of a newer trainer image, passed through unread; may be repeated",
    )
    parser.add_argument(
        "--allow-remote-code",
        action="store_true",
        default=None,
        help="as SFT_ALLOW_REMOTE_CODE=true in the pod",
    )


def _validate(options: argparse.Namespace) -> int:
    from airflow_provider_sft.contract.validation import examine_config

    examination = examine_config(
        read_config_argument(options.file), options.extra_keys, allow_remote_code=options.allow_remote_code
    )
    for notice in examination.notices:
        sys.stderr.write(f"note: {plain_text(notice)}\n")
    examination.refuse_wrong()
    print(f"{name_argument(options.file)}: the config is right.")
    return 0


def _add_encode(subparsers: Subparsers) -> None:
    text = f"Print what goes into {CONFIG_ENV_VAR}: base64 of the file's UTF-8."
    parser = add_subcommand(subparsers, "encode", _encode, text)
    parser.add_argument("file", metavar="FILE", help="a JSON file in any script, or - for standard input")


def _encode(options: argparse.Namespace) -> int:
    text = read_text_argument(options.file)
    parse_config(text, source=name_argument(options.file))
    size_bytes = len(text.encode())
    if size_bytes > MAX_ENV_CONFIG_BYTES:
        sys.stderr.write(
            f"note: {size_bytes:,} bytes are more than the {MAX_ENV_CONFIG_BYTES:,} that fit into an environment "
            f"variable. Mount the file and set {CONFIG_PATH_ENV_VAR} to its path.\n"
        )
    print(encode_text(text))
    return 0


def _add_decode(subparsers: Subparsers) -> None:
    parser = add_subcommand(subparsers, "decode", _decode, f"Print the JSON that {CONFIG_ENV_VAR} holds.")
    parser.add_argument("text", metavar="TEXT", help="the variable's value, or - for standard input")


def _decode(options: argparse.Namespace) -> int:
    encoded = read_text_argument("-") if options.text == "-" else options.text
    sys.stdout.buffer.write(decode_text(encoded).encode())
    sys.stdout.buffer.flush()
    if sys.stdout.isatty():
        print()
    return 0


def _add_schema(subparsers: Subparsers) -> None:
    parser = add_subcommand(
        subparsers, "schema", _schema, "Print the JSON schema of the config, or explain a key."
    )
    parser.add_argument(
        "key",
        metavar="KEY",
        nargs="?",
        help="a key, or accelerate_launch_args.FLAG; none: the whole JSON schema",
    )


def _schema(options: argparse.Namespace) -> int:
    from airflow_provider_sft.contract.explain import explain_key
    from airflow_provider_sft.contract.schema import load_schema

    print(
        explain_key(options.key) if options.key else json.dumps(load_schema(), indent=2, ensure_ascii=False)
    )
    return 0


# Each adds one subcommand to the parser; what it needs beyond the contract its command imports when it runs.
COMMANDS: tuple[Callable[[Subparsers], None], ...] = (
    _add_validate,
    _add_encode,
    _add_decode,
    _add_schema,
    add_estimate_parser,
    add_pod_parser,
    add_job_parser,
    add_vllm_check_parser,
)


if __name__ == "__main__":
    raise SystemExit(main())
