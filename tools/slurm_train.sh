#!/usr/bin/env bash
# tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of train.py]; srun.sh names the resources.
# A job that Slurm has requeued continues from the last checkpoint in WORK_DIR, if there is one.
if [ "$#" -lt 4 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG WORK_DIR [arguments of train.py]" >&2
    exit 1
fi
resume=()
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [ -e "$4/last_checkpoint" ]; then
    resume=(--resume)
fi
exec bash "$(dirname "$0")/srun.sh" "$1" "$2" train.py \
    "$3" --work-dir="$4" --launcher=slurm "${@:5}" "${resume[@]}"
