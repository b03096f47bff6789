"""A tuned adapter made fit for vLLM: `lora_post_process_for_vllm`, and `python -m trainer.export DIR`.

Read `run` first: it is the recipe. `source` reads an adapter that PEFT saved, `vocabulary` finds its trained
rows, `portable` writes the form that every release applies alike, `merge` writes whole models, `switch` puts
files in place so that a reader sees the old adapter or the new one. No torch: tensors are byte ranges, and where
numbers change numpy does it, a block at a time.
"""

from __future__ import annotations

from trainer.export.run import ExportMode, ExportOutcome, export_checkpoints, export_for_vllm

__all__ = ["ExportMode", "ExportOutcome", "export_checkpoints", "export_for_vllm"]
