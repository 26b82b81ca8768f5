#!/usr/bin/env bash
# One sitting of gpu.py on a machine that has torch and a GPU but no network and nothing of ours.
#
#   bash benchmarks/accuracy/gpu.sh ARCHIVE WHEELS STATE [ARGUMENTS OF gpu.py]
#
# ARCHIVE holds CIFAR-10 as images, `train/CLASS/NNNN.jpg` and `test/CLASS/NNNN.jpg`. WHEELS is a
# folder of wheels of what is missing there, as `pip download --only-binary :all: --no-deps` makes it.
# STATE holds what sittings before have left, and what this one leaves.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
archive=$1 wheels=$2 state=$3
shift 3
data=$(mktemp -d)
trap 'rm -rf "$data"' EXIT
if ! python3 -c 'import pydantic, safetensors, yaml, PIL, psutil, torchvision' 2>/dev/null; then
  python3 -m pip install --quiet --no-index --find-links "$wheels" \
    pydantic safetensors pyyaml pillow psutil torchvision
fi
tar -C "$data" -xf "$archive"
python3 -m benchmarks.accuracy.gpu --cifar10 "$data" --state "$state" "$@"
