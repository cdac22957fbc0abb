#!/usr/bin/env bash
# Everything that needs a GPU, in one run of a few minutes. Results go to the folder given (benchmarks/results).
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:-benchmarks/results}"
mkdir -p "$out"
export PYTHONPATH=src
python3 benchmarks/gpu.py --out "$out"
python3 benchmarks/train.py --device cuda --out "$out"
