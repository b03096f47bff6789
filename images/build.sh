#!/usr/bin/env bash
# Build the trainer image, say how large it is and how fast it starts:  images/build.sh [BUILD OPTION ...]
#   images/build.sh --build-arg VARIANT=cpu --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# ENGINE is docker or podman (the first that is there), IMAGE the name.
set -euo pipefail
cd "$(dirname "$0")/.."
engine=${ENGINE:-$(basename "$(command -v docker || command -v podman)")}
image=${IMAGE:-sft-trainer:mytag}
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' airflow_provider_sft/__init__.py)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
# The commit's own date, so that the same commit is the same image.
created=$(git log -1 --format=%cI 2>/dev/null || echo 1970-01-01T00:00:00Z)
"$engine" build . -f images/Dockerfile -t "$image" \
    --build-arg "VERSION=$version" --build-arg "REVISION=$revision" --build-arg "CREATED=$created" "$@"
echo "Layers of $image, newest first:"
"$engine" history --format 'table {{.Size}}\t{{.CreatedBy}}' "$image" | cut -c 1-110
size=$("$engine" image inspect --format '{{.Size}}' "$image")
began=$(date +%s%N)
"$engine" run --rm --network none "$image" check
printf 'Size: %d MB (budget: 6000 with CUDA, 1600 without). Start to end of check, all imports: %d ms (budget: 20000).\n' \
    $((size / 1000000)) $((($(date +%s%N) - began) / 1000000))
