# Thin targets over real scripts. The demos and `make test` start from nothing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# A torch that the given Python already has is used, not downloaded again.
$(BIN)/python:
	$(PYTHON) -m venv $$($(PYTHON) -c 'import importlib.util as u; print("--system-site-packages" if u.find_spec("torch") else "")') $(VENV)

.PHONY: demo demo-detection demo-segmentation demo-language test test-ops test-slurm test-aarch64 test-wheel wheel sanitize attack lint format docs bench clean
demo: $(BIN)/python
	$(BIN)/python tools/setup_environment.py demo
	$(BIN)/python demo/train_digits.py

# ARGS=--short trains for a minute only.
demo-detection demo-segmentation: demo-%: $(BIN)/python
	$(BIN)/python tools/setup_environment.py $@
	$(BIN)/python demo/train_scenes.py $* $(ARGS)

demo-language: $(BIN)/python
	$(BIN)/python tools/setup_environment.py $@
	$(BIN)/python demo/train_language.py $(ARGS)

test: $(BIN)/python
	$(BIN)/python tools/setup_environment.py test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --ignore=tests/system -n logical --maxprocesses 4 --dist loadfile

# The operators alone, which need torch, pytest, hypothesis and scipy; one process a device.
DEVICES ?= cpu emulated
test-ops: $(BIN)/python
	$(BIN)/python tools/setup_environment.py test-ops
	$(MAKE) -j 2 --output-sync $(DEVICES:%=test-ops-%)
test-ops-%:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/ops --device $* $(ARGS)

# Installs Debian's Slurm where there is none, and starts a cluster of its own.
test-slurm: $(BIN)/python
	$(BIN)/python tools/setup_environment.py test
	bash tests/system/slurm/install.sh
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/system/slurm

# Source distribution and wheel, in dist/.
wheel: $(BIN)/python
	$(BIN)/python tools/setup_environment.py wheel
	$(BIN)/python tools/build_wheel.py dist

test-wheel: $(BIN)/python
	$(BIN)/python tools/setup_environment.py test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/system/wheel

# The CPU libraries for Linux on aarch64, cross-compiled, and the operators' tests under emulation: a quarter of an hour.
test-aarch64: $(BIN)/python
	$(BIN)/python tools/setup_environment.py test-ops
	PYTHON=$(BIN)/python bash tests/system/aarch64/run.sh tests/ops --device cpu -q $(ARGS)

# A page in the browser. ARGS='CONFIG CHECKPOINT --port 7861' offers other networks than the demos'.
.PHONY: app test-app
app: $(BIN)/python
	$(BIN)/python tools/setup_environment.py app
	$(BIN)/python demo/app.py $(ARGS)

# Installs Debian's Chromium where there is none.
test-app: $(BIN)/python
	$(BIN)/python tools/setup_environment.py test-app
	bash tests/system/app/install.sh
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/system/app

# The CUDA kernels as host code, watched for wrong accesses, undefined behaviour and data races.
sanitize: $(BIN)/python
	$(BIN)/python tools/setup_environment.py test
	$(BIN)/python -m tests.ops.emulation.sanitize

# Spoiled calls, mangled files, killed trainings. ARGS='--seconds 3600' for an hour of them.
attack: $(BIN)/python
	$(BIN)/python tools/setup_environment.py test
	$(BIN)/python -m tests.attack $(ARGS)

lint: $(BIN)/python
	$(BIN)/python tools/setup_environment.py lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu')
	$(BIN)/hadolint docker/Dockerfile docker/Dockerfile.cpu

format: $(BIN)/python
	$(BIN)/python tools/setup_environment.py lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.cpp' '*.h' '*.cu')

# Warnings are errors, and so are links that lead nowhere.
docs: $(BIN)/python
	$(BIN)/python tools/setup_environment.py docs
	rm -rf build/docs
	$(BIN)/python -m sphinx -q -W --keep-going -c docs -d build/doctrees . build/docs
	@echo "open build/docs/index.html"

bench: $(BIN)/python
	$(BIN)/python tools/setup_environment.py test
	$(BIN)/python experiments/benchmark_ops.py --out experiments/results/ops_cpu.jsonl

clean:
	rm -rf build dist *.egg-info ops/*.so work_dirs
