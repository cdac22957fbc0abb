#!/usr/bin/env bash
# Every metric that needs no download, of the quickstart's models; 50,000 digits by two processes, killed twice; a curve.
#
#     bash benchmarks/digits.sh runs/quickstart OUT        # half an hour on two CPU cores; or only: table, many, curve
set -euo pipefail
runs=$(realpath "$1") out=$(realpath -m "$2")
mkdir -p "$out"
cd "$out"
measure=(--reference digits:all --extractor "$runs/classifier.safetensors")
metrics=fid,sfid,is,prc,dc,kid,accuracy
look=(--steps 50 --guidance 1.5 --batch 125 --per-shard 1000 --device cpu)

parts=" ${*:3} "
wanted() { [[ "$parts" == "  " || "$parts" == *" $1 "* ]]; }

if wanted table; then
hemstitch sample large="$runs/large" "${look[@]}" --num 5000 --out large
hemstitch sample small="$runs/small" "${look[@]}" --num 5000 --out small
for fraction in 0.4 0.8; do
    hemstitch sample small="$runs/small" large="$runs/large" --fraction $fraction "${look[@]}" --num 5000 --out stitched-$fraction
done
hemstitch evaluate large stitched-0.4 stitched-0.8 small "${measure[@]}" --metrics $metrics --out evaluate-digits.json |
    tee evaluate-digits.txt
fi

if wanted many; then
many=(torchrun --nproc_per_node 2 -m hemstitch sample small="$runs/small" large="$runs/large" --fraction 0.4
    "${look[@]}" --samples 50000 --format png,npz --out digits50k)
export OMP_NUM_THREADS=1
for seconds in 75 140; do
    setsid "${many[@]}" > "killed-$seconds.log" 2>&1 &
    group=$!
    sleep $seconds
    kill -9 -- -$group
    wait $group || true
    sleep 3  # what torchrun put into sessions of their own ends when it finds its parent gone; or else:
    pkill -9 -f "hemstitch sample .*$runs.* --out digits50k" || true
    echo "killed after $seconds s: $(find digits50k/manifest -name '0*.json' | wc -l) of 50 shards are there"
done
"${many[@]}"
unset OMP_NUM_THREADS
hemstitch evaluate digits50k "${measure[@]}" --metrics $metrics --out evaluate-digits50k.json | tee evaluate-digits50k.txt
fi

if wanted curve; then
hemstitch evaluate small="$runs/small" large="$runs/large" --curve "${measure[@]}" --guidances 1,1.5,3 --count 1000 \
    --batch 125 --out curve
fi
