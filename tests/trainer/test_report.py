"""What rows, answers and settings hold is text in the report: no markup, no control character, no secret."""

from __future__ import annotations

from airflow_provider_sft.contract.settings import resolve_config
from trainer.files import write_json
from trainer.report import write_report
from trainer.run_dir import SAMPLES_FILE, STATISTICS_FILE

HOSTILE = "</td><script>alert(1)</script>\x1b[2J\u202e\u2028 https://CANARY@h/a?sig=CANARY"
RESULT = {
    "contract_version": 1,
    "status": "succeeded",
    "exit_code": 0,
    "reason": "Tuned.",
    "advice": "",
    "attempt": 1,
    "steps": 1,
    "epochs": 1.0,
    "trained_tokens": 1,
    "tokens_per_s": 1.0,
    "wall_s": 1.0,
    "gpu_s": 0.0,
    "world_size": 1,
    "distributed": "none",
    "config_sha256": "a",
    "data_sha256": "b",
}


def test_report_of_hostile_rows_answers_and_paths_is_plain(lora_config, tmp_path):
    settings = resolve_config({**lora_config, "run_name": HOSTILE})
    write_json(
        tmp_path / SAMPLES_FILE,
        {"samples": [dict.fromkeys(("prompt", "expected", "before", "after"), HOSTILE)]},
    )
    write_json(
        tmp_path / STATISTICS_FILE,
        {"rows": 1, "format": HOSTILE, "samples": [[[HOSTILE, True], [HOSTILE, False]]]},
    )
    verdict = {"releases": HOSTILE, "verdict": "loads_right", "reason": HOSTILE, "flags": [HOSTILE]}
    texts = {"base_model": HOSTILE, "model_kind": HOSTILE, "model_path": HOSTILE}
    result = {**RESULT, **texts, "notices": [HOSTILE], "vllm_verdict": [verdict]}
    page = write_report(tmp_path, settings, result).read_text(encoding="utf-8")
    assert "&lt;script&gt;" in page
    for raw in ("<script", "\x1b", "\u202e", "\u2028", "CANARY"):
        assert raw not in page
