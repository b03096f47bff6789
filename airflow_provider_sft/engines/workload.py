"""What Kueue says of a job, in its Workload. Pure over the Workload as JSON."""

from __future__ import annotations

from airflow_provider_sft.engines.engine import Manifest
from airflow_provider_sft.engines.reading import describe_condition, find_condition


def is_stopped(workload: Manifest | None) -> str | None:
    """Kueue's words, where it stopped the job and will not queue it again."""
    if workload is None or workload.get("spec", {}).get("active", True):
        return None
    if find_condition(workload, "Finished"):
        return None
    return describe_condition(find_condition(workload, "Evicted")) or "the Workload is not active"


def is_admitted(workload: Manifest | None) -> bool:
    return workload is not None and find_condition(workload, "Admitted") is not None


def is_evicted(workload: Manifest | None) -> str | None:
    """Why Kueue took the job's quota away, until it has it again."""
    if workload is None:
        return None
    if evicted := find_condition(workload, "Evicted"):
        return describe_condition(evicted)
    back = find_condition(workload, "Requeued", status="False") or find_condition(workload, "Requeued")
    return None if find_condition(workload, "QuotaReserved") else describe_condition(back)


def describe_wait(workload: Manifest | None, *, queue: str | None = None) -> str:
    """What a suspended job waits for."""
    if workload is None:
        return f"the job is suspended{', and Kueue has no Workload of it yet' if queue else ''}"
    if is_admitted(workload):
        return "admitted, and about to be resumed"
    if find_condition(workload, "QuotaReserved"):
        return f"quota is reserved; waiting for admission checks{_pending_checks(workload)}"
    lacking = describe_condition(find_condition(workload, "QuotaReserved", status="False"))
    retry = workload.get("status", {}).get("requeueState", {}).get("requeueAt")
    return f"{lacking or 'waiting for quota'}{f'; again at {retry}' if retry else ''}"


def _pending_checks(workload: Manifest) -> str:
    checks = workload.get("status", {}).get("admissionChecks") or []
    pending = [
        f"{check['name']}: {check.get('message') or check['state']}"
        for check in checks
        if check.get("state") != "Ready"
    ]
    return f" ({'; '.join(pending)})" if pending else ""
