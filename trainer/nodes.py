"""Which of how many nodes this is: what Kubeflow's Trainer, JobSet and PyTorchJob put into the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_sft.contract.errors import ConfigError

# What Kubeflow's engines write for "as many as there are", which is what we count ourselves.
_LEFT_OPEN = ("auto", "gpu", "cpu")


@dataclass(frozen=True)
class Nodes:
    """:param processes_per_node: as the engine set it, or None"""

    count: int = 1
    rank: int = 0
    processes_per_node: int | None = None
    master_address: str = ""
    master_port: int = 29500

    def accelerate_args(self) -> dict[str, Any]:
        """Static rendezvous: c10d over pod DNS is fragile (pytorch #73380, #150532)."""
        if self.count == 1:
            return {}
        return {
            "num_machines": self.count,
            "machine_rank": self.rank,
            "main_process_ip": self.master_address,
            "main_process_port": self.master_port,
            "rdzv_backend": "static",
            "same_network": True,
        }


def read_nodes(environ: Mapping[str, str]) -> Nodes:
    """PET_* first; PyTorchJob's WORLD_SIZE, RANK and MASTER_* where they are absent.

    :raises ConfigError: a variable is no number, or a multi-node run has no master address
    """
    count = _number(environ, "PET_NNODES", "WORLD_SIZE") or 1
    per_node = _number(environ, "PET_NPROC_PER_NODE") or None
    if count == 1:
        return Nodes(processes_per_node=per_node)
    address = environ.get("PET_MASTER_ADDR") or environ.get("MASTER_ADDR") or ""
    if not address:
        raise ConfigError(
            f"PET_NNODES is {count} but PET_MASTER_ADDR is not set. Set it to node 0's address."
        )
    return Nodes(
        count=count,
        rank=_number(environ, "PET_NODE_RANK", "RANK") or 0,
        processes_per_node=per_node,
        master_address=address,
        master_port=_number(environ, "PET_MASTER_PORT", "MASTER_PORT") or 29500,
    )


def _number(environ: Mapping[str, str], *names: str) -> int | None:
    for name in names:
        value = environ.get(name, "").strip()
        if value and value not in _LEFT_OPEN:
            # PET_NNODES may be a range min:max; static rendezvous takes the maximum.
            last = value.rpartition(":")[2]
            if not last.isdigit():
                raise ConfigError(f"{name} is {value!r}. It must be a whole number.")
            return int(last)
    return None
