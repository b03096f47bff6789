"""The schema of the config, generated: `python -m trainer.schema`.

It reads the dataclasses of trl, transformers and peft, accelerate's parser and our own keys (`keys`), and writes
`airflow_provider_sft/contract/config_schema.json` and `docs/config.md`. Nothing here runs in a training.
"""
