#!/usr/bin/env bash
# Cross-compile the CPU libraries for Linux on aarch64, and run the operators' tests there under qemu's emulation.
# Needs Debian and root, and downloads about 400 MB: PYTHON has torch, the arguments are pytest's.
#
#   bash tests/system/aarch64/run.sh tests/ops --device cpu -q
set -euo pipefail
cd "$(dirname "$0")/../../.."
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
build=$PWD/build/aarch64 # a root with Debian's Python 3.11, its packages in site, and a copy of the sources
mkdir -p "$build"

apt-get install -y -qq debootstrap g++-aarch64-linux-gnu qemu-user-static > /dev/null
if [ ! -e "$build/root/usr/bin/python3.11" ]; then
    debootstrap --foreign --arch=arm64 --variant=minbase --include=python3 bookworm "$build/root" http://deb.debian.org/debian
    for package in "$build"/root/var/cache/apt/archives/*.deb; do dpkg -x "$package" "$build/root"; done
fi
if [ ! -e "$build/site/torch" ]; then
    install=("$python" -m pip install -q --target "$build/site" --python-version 3.11 --only-binary=:all:)
    for libc in 2_28 2_27 2_17; do install+=(--platform "manylinux_${libc}_aarch64"); done
    "${install[@]}" filelock fsspec hypothesis jinja2 networkx numpy pytest scipy sympy typing-extensions
    "${install[@]}" --no-deps torch==2.10.0 # the oldest that the library serves, and one without CUDA's packages
fi

mkdir -p "$build/sources"
git ls-files -z | xargs -0 cp --parents -P -t "$build/sources"
cd "$build/sources"
CC=aarch64-linux-gnu-gcc CXX=aarch64-linux-gnu-g++ LDSHARED="aarch64-linux-gnu-g++ -shared" \
    LDFLAGS="-L$build/site/torch/lib -Wl,--allow-shlib-undefined" FORCE_CUDA=0 \
    "$python" setup.py -q build_ext --inplace
export QEMU_LD_PREFIX=$build/root PYTHONPATH=$build/site:$PWD OMP_NUM_THREADS=1
# Without binfmt, a test cannot start a Python of its own; and the emulator ends where memory does.
others=(--deselect tests/ops/test_operators.py::test_a_process_imports_little_and_survives_running_out_of_memory)
others+=(--deselect tests/ops/test_operators.py::test_a_library_that_is_not_there_or_does_not_fit_explains_itself)
others+=(--deselect tests/ops/test_bad_input.py::test_memory_that_runs_out_is_reported_with_its_size)
exec qemu-aarch64-static "$build/root/usr/bin/python3.11" -m pytest -p no:cacheprovider "${others[@]}" "$@"
