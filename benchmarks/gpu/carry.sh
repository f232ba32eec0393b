#!/usr/bin/env bash
# Downloads the wheels of carry.txt, 16 MB, for Linux on x86-64, to take to a machine without a
# network: benchmarks/gpu/carry.sh FOLDER [PYTHON_VERSION]
set -euo pipefail
folder=${1:?usage: carry.sh FOLDER [PYTHON_VERSION, 3.12 if not given]}
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${tag}_x86_64")
done
# Without what they need in turn: that is in the list, or comes with PyTorch and transformers.
"${PYTHON:-python3}" -m pip download --no-deps --only-binary=:all: --implementation cp \
    --python-version "${2:-3.12}" "${platforms[@]}" --dest "$folder" \
    --requirement "$(dirname "$0")/carry.txt"
