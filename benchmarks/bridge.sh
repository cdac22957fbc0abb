#!/usr/bin/env bash
# bridge.py on a GPU, perhaps on a machine without diffusers and without a network: `prepare` where there is one, bring
# build/site along with the checkout, then run.
#
#   benchmarks/bridge.sh prepare        diffusers and what it imports beside torch and transformers, in build/site
#   benchmarks/bridge.sh [FILE]         results to FILE (benchmarks/results/bridge-cuda.json)
set -euo pipefail
cd "$(dirname "$0")/.."
site=build/site
if [ "${1:-}" = prepare ]; then
    rm -rf "$site"
    # importlib-metadata and zipp are plain Python, and seldom there; the rest comes with transformers
    python3 -m pip install -q --no-deps --no-compile --target "$site" diffusers==0.42.1 importlib-metadata zipp
    rm -rf "$site"/bin "$site"/diffusers/{commands,experimental}
    find "$site" -type d -name __pycache__ -prune -exec rm -rf {} +
    du -sh "$site"
    exit
fi
[ -d "$site" ] && export PYTHONPATH="src:$site" || export PYTHONPATH=src
exec python3 benchmarks/bridge.py --device cuda --out "${1:-benchmarks/results/bridge-cuda.json}"
