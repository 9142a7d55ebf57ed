#!/usr/bin/env bash
# Install Debian's Chromium and its driver where they are not there.
set -euo pipefail
if command -v chromium chromedriver > /dev/null; then exit; fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends chromium chromium-driver
