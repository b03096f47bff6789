"""After the ranks are gone: tidy, export, report. Whatever was asked for and did not happen ends the run. No torch."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from airflow_provider_sft.contract.names import REPORT_FILE
from airflow_provider_sft.contract.outcome import Result
from airflow_provider_sft.contract.settings import Settings
from trainer.run_dir import PREPARED_DIR, read_samples
from trainer.trained import Trained

log = logging.getLogger("trainer")


def finish_run(settings: Settings, output_dir: Path, result: Result) -> None:
    """Complete `result` in place.

    :raises ExportError: the export that was asked for is not possible
    """
    # Rows that the user keeps for other runs lie in prepared_data_dir; these serve this run's attempts alone.
    shutil.rmtree(output_dir / PREPARED_DIR, ignore_errors=True)
    if "model_path" not in result:
        return
    if settings.values.get("lora_post_process_for_vllm"):
        _export(settings, output_dir, result)
    model_path = Path(result["model_path"])
    result["files"] = sorted(
        path.name for path in model_path.iterdir() if path.is_file() and path.name[0] != "."
    )
    if settings.values["report"]:
        _write_report(settings, output_dir, result)


def _export(settings: Settings, output_dir: Path, result: Result) -> None:
    from trainer.export.run import export_for_vllm

    base = Path(str(settings.values["model_name_or_path"]))
    outcome = export_for_vllm(
        Path(result["model_path"]),
        mode=settings.values["vllm_export"],
        base_model_dir=base if base.is_dir() else None,
        before_switch=lambda stage: Trained.expect(output_dir, stage),
    )
    result["model_path"], result["model_kind"] = str(outcome.model_path), outcome.model_kind
    result["vllm_verdict"] = outcome.vllm_verdict
    result["notices"] += outcome.notices


def _write_report(settings: Settings, output_dir: Path, result: Result) -> None:
    from trainer.report import write_report

    if any("after" not in sample for sample in read_samples(output_dir)):
        result["notices"].append(
            f"{REPORT_FILE} lacks the tuned model's answers: the run was interrupted before."
        )
    try:
        log.info("Report: %s", write_report(output_dir, settings, result))
    except Exception as error:
        # The model is there and whole: a page about it is not worth training it again.
        log.exception("The report could not be written")
        result["notices"].append(f"{REPORT_FILE} could not be written: {error}")
