"""JobSet before 0.10, which Kubeflow Trainer 2.0 brings along: a set cannot tell why a job of it failed. Pure.

Trainer 2.1 has JobSet 0.10, whose rules match the job's message. All else that we send is the same from Trainer 2.0 on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow_provider_sft.engines.engine import Manifest

_FIELD = "onJobFailureMessagePatterns"
LOSS = (
    "This cluster's JobSet is older than 0.10 and does not tell a lost or preempted node from a failed one: each counts as "
    "one of max_restarts."
)


def is_older_jobset(refusal: str) -> bool:
    """:param refusal: what the API server, asked to be strict, said to a JobSet or a TrainingRuntime"""
    return "unknown field" in refusal and _FIELD in refusal


def fit_older_jobset(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Without the rule that needs the field, and without the one that it follows: the next rule would take a lost node's
    job for one that failed for good.
    """
    return [_without_disruptions(manifest) for manifest in manifests]


def _without_disruptions(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_disruptions(each) for each in value if not _tells_disruption(each)]
    if isinstance(value, dict):
        return {key: _without_disruptions(each) for key, each in value.items()}
    return value


def _tells_disruption(value: Any) -> bool:
    return isinstance(value, dict) and (_FIELD in value or "onPodConditions" in value)
