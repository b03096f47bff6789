"""Several data sets to one: splits, weights, order. The draws are `datasets`' own, so a seed gives the peer's order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from airflow_provider_sft.contract.errors import DataError
from trainer.data.plan import DataPlan, DatasetSpec
from trainer.data.store import write_rows

ROLES = ("train", "validation")


def split_rows(path: Path, spec: DatasetSpec, label: str, seed: int) -> dict[str, Path]:
    """The file of each role the data set plays. A data set with one role keeps its file as it is.

    :param label: for sentences
    :raises DataError: too few rows for a split
    """
    shares = {"train": spec.train, "validation": spec.validation}
    roles = [role for role in ROLES if shares[role] > 0]
    if len(roles) == 1 and shares[roles[0]] >= 1:
        return {roles[0]: path.rename(path.with_suffix(f".{roles[0]}.arrow"))}
    rows = datasets.Dataset.from_file(str(path))
    try:
        parts = rows.train_test_split(
            train_size=spec.train or None, test_size=spec.validation or None, shuffle=spec.shuffle, seed=seed
        )
    except ValueError as error:
        raise DataError(
            f"{label} has {len(rows):,} rows, too few to split into train {spec.train:g} and validation "
            f"{spec.validation:g}. Add rows, or change the split."
        ) from error
    written = {}
    for role, part in zip(ROLES, (parts["train"], parts["test"]), strict=True):
        if role in roles:
            written[role] = path.with_suffix(f".{role}.arrow")
            write_rows(part, written[role])
    path.unlink()
    return written


def mix_rows(parts: Sequence[Any], weights: Sequence[float], plan: DataPlan) -> Any:
    """One data set of all: by weight where there are any, else one behind the other.

    :param parts: `datasets.Dataset`s, or streams
    """
    if len(parts) == 1:
        return parts[0]
    if not any(weights):
        return datasets.concatenate_datasets(list(parts))
    return datasets.interleave_datasets(
        list(parts),
        probabilities=[weight / sum(weights) for weight in weights],
        seed=plan.seed,
        stopping_strategy=plan.stopping_strategy,
    )
