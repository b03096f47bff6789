"""`report.html`: one self-contained page that shows a run to a person. No torch, nothing fetched."""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2

from airflow_provider_sft.contract.names import REPORT_FILE
from airflow_provider_sft.contract.outcome import Result
from airflow_provider_sft.contract.plain_text import plain_value
from airflow_provider_sft.contract.progress import describe_duration
from airflow_provider_sft.contract.settings import Settings
from trainer.files import read_json, write_atomically
from trainer.progress import read_history
from trainer.run_dir import STATISTICS_FILE, read_samples

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors")
_WIDTH, _HEIGHT, _MARGIN = 640, 220, 58
_TICKS = 4


def write_report(output_dir: Path, settings: Settings, result: Result) -> Path:
    """Write the report of a run from what its attempts left in `output_dir`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=plain_value,  # before the escapes of HTML
    )
    environment.filters["duration"] = describe_duration
    history = read_history(output_dir)
    page = environment.get_template("report.html.j2").render(
        result=result,
        title=Path(result.get("base_model", "model")).name,
        curves=[curve for curve in _curves(history) if curve["lines"]],
        statistics=read_json(output_dir / STATISTICS_FILE) or {},
        samples=read_samples(output_dir),
        config=json.dumps(settings.values, indent=2, ensure_ascii=False, default=str),
        environment=_describe_environment(),
    )
    path = output_dir / REPORT_FILE
    write_atomically(path, page)
    return path


def _curves(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        draw_curve("Loss", history, {"loss": "training", "eval_loss": "evaluation"}),
        draw_curve("Learning rate", history, {"learning_rate": "learning rate"}),
        draw_curve("Gradient norm", history, {"grad_norm": "gradient norm"}),
        draw_curve("Tokens per second", history, {"tokens_per_s": "tokens/s"}),
    ]


def draw_curve(title: str, history: list[dict[str, Any]], names: Mapping[str, str]) -> dict[str, Any]:
    """Polylines in SVG units for `names` over the step, with ticks; `lines` is empty when nothing was logged."""
    series = {label: [(e["step"], e[name]) for e in history if name in e] for name, label in names.items()}
    series = {label: points for label, points in series.items() if points}
    points = [point for line in series.values() for point in line]
    if not points:
        return {"title": title, "lines": []}
    last_step = max(step for step, _ in points)
    low, high = _round_range([value for _, value in points])

    def place(step: float, value: float) -> str:
        x = _MARGIN + (_WIDTH - _MARGIN - 12) * step / max(last_step, 1)
        y = 12 + (_HEIGHT - 36) * (high - value) / (high - low)
        return f"{x:.1f},{y:.1f}"

    return {
        "title": title,
        "width": _WIDTH,
        "height": _HEIGHT,
        "margin": _MARGIN,
        "lines": [
            {"label": label, "points": " ".join(place(*point) for point in line), "single": len(line) == 1}
            for label, line in series.items()
        ],
        "y_ticks": [
            {"at": place(0, value).split(","), "text": _tick(value)}
            for value in (low + (high - low) * index / _TICKS for index in range(_TICKS + 1))
        ],
        "x_ticks": [
            {"at": place(step, low).split(","), "text": str(round(step))}
            for step in sorted({round(last_step * index / _TICKS) for index in range(_TICKS + 1)})
        ],
    }


def _tick(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"  # noqa: PLR2004


def _round_range(values: list[float]) -> tuple[float, float]:
    """The range of the axis; from zero where that wastes less than half of it."""
    low, high = min(values), max(values)
    if 0 <= low <= high / 2:
        low = 0.0
    if math.isclose(low, high):
        low, high = low - abs(low or 1) / 2, high + abs(high or 1) / 2
    return low, high


def _describe_environment() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"Python": platform.python_version(), **versions, "CPU": _cpu_model(), "Linux": platform.release()}


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.machine()
