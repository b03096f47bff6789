"""Print the tested versions: what this environment holds of the distribution's dependencies, for constraints.txt.

.venv/bin/python tools/constraints.py > constraints.txt
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = "airflow-provider-sft[dev]"
HEADER = "# The versions that are tested together, on Python 3.11. `make pin` writes this file."


def pin_closure(root: str) -> dict[str, str]:
    """The installed version of everything that `root` needs, without local labels such as +cpu."""
    pins: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    queue = [(Requirement(root), "")]
    while queue:
        requirement, extra = queue.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in {"", *requirement.extras}:
            if (name, wanted) in seen:
                continue
            seen.add((name, wanted))
            try:
                found = distribution(name)
            except PackageNotFoundError:
                continue
            pins[name] = Version(found.version).public
            queue += [(Requirement(line), wanted) for line in found.requires or []]
    pins.pop(canonicalize_name(Requirement(root).name), None)
    return pins


def main() -> int:
    sys.stdout.write(f"{HEADER}\n")
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in sorted(pin_closure(ROOT).items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
