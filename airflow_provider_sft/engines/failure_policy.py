"""What a job's engine does when a pod ends badly: the map of exit codes, as Kubernetes takes it."""

from __future__ import annotations

from airflow_provider_sft.contract.exit_codes import Action, ExitCode
from airflow_provider_sft.engines.engine import Manifest

# The shell's and the runtime's own: cannot be executed, was not found, could not be started.
_UNSTARTABLE = (126, 127, 128)
PERMANENT_CODES = sorted(
    [*(int(code) for code in ExitCode if code and code.action is Action.FAIL), *_UNSTARTABLE]
)


def pod_failure_policy(container: str, *, on_disruption: str) -> Manifest:
    """:param on_disruption: `Ignore` for a Job that replaces the pod, `FailJob` for a JobSet that restarts all"""
    codes = {"containerName": container, "operator": "In", "values": list(PERMANENT_CODES)}
    return {
        "rules": [
            {"action": on_disruption, "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": codes},
        ]
    }


def jobset_failure_policy(max_restarts: int) -> Manifest:
    """A disruption restarts all nodes and does not count; a permanent exit code ends the set. The first match decides."""
    return {
        "maxRestarts": max_restarts,
        "rules": [
            {
                "name": "disruption",
                "action": "RestartJobSetAndIgnoreMaxRestarts",
                "onJobFailureReasons": ["PodFailurePolicy"],
                "onJobFailureMessagePatterns": [".*DisruptionTarget.*"],
            },
            {"name": "permanent", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
        ],
    }
