#!/usr/bin/env bash
# Two kinds of GPU in one machine: a Ray node for each, so that every process gets the kind that it was planned for.
# GPUs by their numbers in nvidia-smi; the first list is the head's:
#   bash cluster/two-kinds.sh 0 1,2
#   python -m qlora_ray.sweep --set cluster.address=auto
#   ray stop
set -euo pipefail
if [ $# != 2 ]; then echo "usage: bash cluster/two-kinds.sh GPUS GPUS, as 0 1,2" >&2; exit 2; fi

# nvidia-smi counts by bus; CUDA would count by speed.
export CUDA_DEVICE_ORDER=PCI_BUS_ID RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
port=${PORT:-6379}
half=$(( ($(nproc) + 1) / 2 ))
ray get-auth-token --generate > /dev/null

# Each node has its share of the CPUs and ports of its own for its workers and its agent.
CUDA_VISIBLE_DEVICES=$1 ray start --head --port="$port" --num-cpus="$half" --labels="gpus=${1//,/.}" \
    --object-store-memory=500000000 --min-worker-port=10002 --max-worker-port=14999
CUDA_VISIBLE_DEVICES=$2 ray start --address="127.0.0.1:$port" --num-cpus="$half" --labels="gpus=${2//,/.}" \
    --object-store-memory=500000000 --min-worker-port=15000 --max-worker-port=19999 \
    --dashboard-agent-listen-port=52366
