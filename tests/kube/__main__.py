"""`python -m tests.kube --kubeconfig FILE`: the test server for other processes, until its stdin is closed.

Faults are set with `curl -d '{"kind": "Evicted", "after_lines": 3}' URL/_test/faults`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from pathlib import Path

from tests.kube.fixtures import IMAGES
from tests.kube.server import KubeServer


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kube", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True, help="written when the server is ready")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument(
        "--image", action="append", default=[], metavar="NAME=COMMAND", help="an image and its entrypoint"
    )
    parser.add_argument(
        "--mount-root", action="append", default=[], type=Path, help="where volumes may appear"
    )
    arguments = parser.parse_args(argv)
    given = dict(item.split("=", 1) for item in arguments.image)
    images = IMAGES | {name: shlex.split(command) for name, command in given.items()}
    with (
        tempfile.TemporaryDirectory(prefix="kube-") as home,
        KubeServer(
            home=Path(home), images=images, mount_roots=arguments.mount_root, port=arguments.port
        ) as server,
    ):
        server.write_kubeconfig(arguments.kubeconfig)
        print(server.url, flush=True)
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
