#!/usr/bin/env bash
# Run a tool in several processes; dist_train.sh and dist_test.sh call it:
#   tools/torchrun.sh GPUS TOOL [arguments of the tool]
# Several machines: NNODES, NODE_RANK, MASTER_ADDR, PORT. Another Python: PYTHON.
# Without GPUs the processes run on the CPU.
set -euo pipefail

exec "${PYTHON:-python}" "$(dirname "$0")/torchrun.py" \
    --nnodes="${NNODES:-1}" \
    --node-rank="${NODE_RANK:-0}" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" \
    --master-port="${PORT:-29500}" \
    --nproc-per-node="$1" \
    "$(dirname "$0")/$2" "${@:3}"
