"""The engines by name and kind, and which one is the best of those that a cluster serves."""

from __future__ import annotations

from collections.abc import Container

from airflow_provider_sft.engines.engine import Engine
from airflow_provider_sft.engines.job import JOB
from airflow_provider_sft.engines.jobset import JOBSET
from airflow_provider_sft.engines.pytorchjob import PYTORCHJOB
from airflow_provider_sft.engines.trainjob import TRAINJOB
from airflow_provider_sft.failures import LaunchFailure

ENGINES = {engine.name: engine for engine in (JOB, PYTORCHJOB, JOBSET, TRAINJOB)}
ENGINES_BY_KIND = {engine.kind: engine for engine in ENGINES.values()}
AUTO = "auto"
_BEST_FIRST = (TRAINJOB, JOBSET, PYTORCHJOB)


def find_engine(name: str) -> Engine:
    """:raises LaunchFailure: there is none of that name"""
    if name not in ENGINES:
        raise LaunchFailure(f"engine is {name!r}. Give one of {', '.join(map(repr, [*ENGINES, AUTO]))}.")
    return ENGINES[name]


def choose_engine(name: str, *, num_nodes: int, served: Container[str]) -> Engine:
    """
    :param name: an engine's, or `auto`: a Job for one node, else the best that is served
    :param served: names of the engines that the cluster knows
    :raises LaunchFailure: the cluster does not serve what is asked for
    """
    if name != AUTO:
        engine = find_engine(name)
        if name not in served:
            raise LaunchFailure(_missing(engine, served))
        return engine
    if num_nodes == 1:
        return JOB
    for engine in _BEST_FIRST:
        if engine.name in served:
            return engine
    raise LaunchFailure(
        f"num_nodes is {num_nodes}, and the cluster serves none of TrainJob, JobSet and PyTorchJob. Install "
        f"{TRAINJOB.source} or {JOBSET.source}, or set engine='job', which restarts nodes one by one."
    )


def _missing(engine: Engine, served: Container[str]) -> str:
    others = [repr(name) for name in ENGINES if name in served]
    instead = f", or set engine to {' or '.join(others)}" if others else ""
    return (
        f"engine is {engine.name!r}, but the cluster serves no {engine.kind} ({engine.api_version}). "
        f"Install {engine.source}{instead}."
    )
