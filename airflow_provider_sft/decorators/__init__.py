"""`@task.sft`."""
