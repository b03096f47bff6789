"""The trainer controller: rules in a YAML file that stop, save, evaluate or log while training goes on.

The format is fms-hf-tuning's. `plan` reads and checks the file (no torch, so the parent can refuse a wrong one at
once), `metrics` says what rules see, `rules` evaluates them safely, `log_format` fills in log lines, `callback` acts.
"""
