#!/usr/bin/env bash
# tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of test.py]; srun.sh names the resources.
if [ "$#" -lt 4 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of test.py]" >&2
    exit 1
fi
exec bash "$(dirname "$0")/srun.sh" "$1" "$2" test.py "$3" "$4" --launcher=slurm "${@:5}"
