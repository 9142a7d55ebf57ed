#!/usr/bin/env bash
# tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of train.py]
# Resources: GPUS (in all), GPUS_PER_NODE, CPUS_PER_TASK, SRUN_ARGS (further arguments of srun).
# A job that Slurm has requeued continues from the last checkpoint in WORK_DIR, if there is one.
set -euo pipefail

if [ "$#" -lt 4 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG WORK_DIR [arguments of train.py]" >&2
    exit 1
fi
partition=$1
job_name=$2
config=$3
work_dir=$4
gpus=${GPUS:-8}
gpus_per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
read -r -a srun_args <<< "${SRUN_ARGS:-}"
resume=()
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [ -e "$work_dir/last_checkpoint" ]; then
    resume=(--resume)
fi

exec srun -p "$partition" \
    --job-name="$job_name" \
    --gres=gpu:"$gpus_per_node" \
    --ntasks="$gpus" \
    --ntasks-per-node="$gpus_per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    "${srun_args[@]}" \
    "${PYTHON:-python}" -u "$(dirname "$0")/train.py" "$config" --work-dir="$work_dir" --launcher=slurm \
    "${@:5}" "${resume[@]}"
