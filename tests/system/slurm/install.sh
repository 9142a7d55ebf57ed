#!/usr/bin/env bash
# Install Debian's Slurm and munge where they are not there. Nothing is started or configured.
set -euo pipefail
if PATH=$PATH:/usr/sbin command -v slurmctld slurmd munged srun > /dev/null; then exit; fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends slurm-wlm munge
