#!/usr/bin/env bash
# tools/dist_train.sh CONFIG GPUS [arguments of train.py]; torchrun.sh names the settings.
if [ "$#" -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [arguments of train.py]" >&2
    exit 1
fi
exec bash "$(dirname "$0")/torchrun.sh" "$2" train.py "$1" --launcher pytorch "${@:3}"
