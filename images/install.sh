#!/bin/sh
# In the build stage: install the pinned requirements into /opt/venv, drop what a run never opens, compile the rest.
set -eu
pip() { python3 -m pip --python /opt/venv/bin/python3 install -q --only-binary :all: "$@"; }
pip -r "$1"
[ -z "${EXTRA_PACKAGES:-}" ] || pip $EXTRA_PACKAGES
cd "$(/opt/venv/bin/python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

# Triton compiles its own driver.c when it first runs, and nothing else in C: cc.sh hands this file out instead.
if [ -f triton/backends/nvidia/driver.c ]; then
    gcc -shared -Wl,-soname,libcuda.so.1 -o /build/libcuda.so.1 -x c /dev/null
    gcc -O3 -shared -fPIC -Wno-psabi triton/backends/nvidia/driver.c -o /opt/venv/lib/triton-cuda-utils.so \
        -Itriton/backends/nvidia/include "-I$(python3 -c 'import sysconfig; print(sysconfig.get_path("include", "posix_prefix"))')" \
        -L/build -Wl,--no-as-needed -l:libcuda.so.1
fi

# Headers, static libraries and test suites: the image has no compiler that could use the first two.
rm -rf torch/include torch/share torch/test torch/lib/*test*.so nvidia/*/include nvidia/*/*/include triton/backends/*/include \
    pyarrow/include pyarrow/src pyarrow/tests pandas/tests
find sympy networkx -type d -name tests -prune -exec rm -rf {} +
find torch/bin -type f ! -name torch_shm_manager -delete
find . -name '*.a' -delete
# Bytecode that is not checked against its source: a read-only root could not renew it, and a start saves the stats.
# Twice quiet: torch ships a file in the syntax of a later Python, which nothing imports here.
python3 -m compileall -qq -j 0 --invalidation-mode unchecked-hash . || true
