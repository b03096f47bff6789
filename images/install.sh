#!/bin/sh
# In the build stage: install the pinned requirements into /opt/venv, drop what a run never opens, compile the rest.
set -eu
pip() { python3 -m pip --python /opt/venv/bin/python3 install -q --only-binary :all: "$@"; }
pip -r "$1"
[ -z "${EXTRA_PACKAGES:-}" ] || pip $EXTRA_PACKAGES
cd "$(/opt/venv/bin/python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
# Headers, static libraries and test suites: the image has no compiler that could use the first two.
rm -rf torch/include torch/share torch/test torch/lib/*test*.so nvidia/*/include nvidia/*/*/include \
    pyarrow/include pyarrow/src pyarrow/tests pandas/tests
find torch/bin -type f ! -name torch_shm_manager -delete
find . -name '*.a' -delete
# Bytecode that is not checked against its source: a read-only root could not renew it, and a start saves the stats.
python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash . || true
