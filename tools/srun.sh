#!/usr/bin/env bash
# Run a tool as a Slurm job step; slurm_train.sh and slurm_test.sh call it:
#   tools/srun.sh PARTITION JOB_NAME TOOL [arguments of the tool]
# Resources: GPUS (in all), GPUS_PER_NODE, CPUS_PER_TASK, SRUN_ARGS (further arguments of srun).
# Another Python: PYTHON.
set -euo pipefail

gpus=${GPUS:-8}
gpus_per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
read -r -a srun_args <<< "${SRUN_ARGS:-}"

exec srun -p "$1" \
    --job-name="$2" \
    --gres=gpu:"$gpus_per_node" \
    --ntasks="$gpus" \
    --ntasks-per-node="$gpus_per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    "${srun_args[@]}" \
    "${PYTHON:-python}" -u "$(dirname "$0")/$3" "${@:4}"
