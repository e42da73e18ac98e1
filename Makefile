# make bench   everything that is missing, then the quick study; ends with a table and the path of the results
# make test    everything that is missing, then all checks
#
# The first Python of this machine for which all dependencies have wheels; PYTHON=/path/to/python takes another.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: bench test test-full search tables bench-training bench-wrapper bench-serving bench-load bench-statistics bench-report gpu gpu-wheels gpu-check clean

bench: $(READY)
	$(BIN)/medserve run quick

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

# What takes too long for every change: all architectures at full width and 224 px with all their exports, the long
# attacks, every moment of a kill.
test-full: $(READY)
	$(BIN)/pytest -m full -n 2 --dist loadgroup

# Property tests on 2,000 other examples each; `make test` draws the same in each run.
search: $(READY)
	$(BIN)/pytest -n 2 -m 'hypothesis and not full' --hypothesis-profile search

# The tables of the manuals that show a study, each from its bundle.
tables: $(READY)
	$(BIN)/python tests/study_tables.py

# Each framework's training loop beside the plain one that its users write, side by side in one run.
bench-training: $(READY)
	$(BIN)/python -m train.benchmark

# The wrapper's cost over a bare server, side by side in one run.
bench-wrapper: $(READY)
	$(BIN)/python -m serve.benchmark

# The wrapper beside other servers, each in an environment of its own (build/peers, 1.5 GB); batching; JSON. 20 minutes.
bench-serving: $(READY)
	$(BIN)/python -m loadtest.benchmark serving

# The load generator against its targets, and against clients of other designs (wrk: Debian package wrk).
bench-load: $(READY)
	$(BIN)/python -m loadtest.benchmark load

# Intervals, flags and verdicts on simulated series whose truth is known; nothing is measured.
bench-statistics: $(READY)
	$(BIN)/python -m loadtest.benchmark coverage

# What JAX and ONNX Runtime need on an NVIDIA GPU beside PyTorch's libraries of CUDA 13 (3 GB). TensorFlow's are of
# CUDA 12, in the environment of the study `gpu`.
gpu: $(READY)
	$(BIN)/pip install -qq --constraint constraints.txt torch 'jax[cuda13]' 'onnxruntime-gpu[cuda,cudnn]'
	$(BIN)/medserve doctor

# Wheels of what a machine with a GPU and without a network may lack, for its Python: make gpu-wheels FOR=3.12
FOR := 3.12
WHEELS := build/gpu-wheels
gpu-wheels:
	$(PYTHON) medserve/gpu_check.py collect $(WHEELS) $(FOR) $(MORE)

# The whole way in minutes with what that Python has: make gpu-check OUT=folder PYTHON=python3. Needs no network.
OUT := build/gpu-check
gpu-check:
	$(PYTHON) medserve/gpu_check.py run $(OUT) $(WHEELS)

# The report of 200 cells and ten million samples: time, memory, size, first paint.
bench-report: $(READY)
	$(BIN)/python -m loadtest.benchmark report

$(READY): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c '$(SUPPORTED)' || { echo "medserve needs Python 3.11, 3.12 or 3.13: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import shutil, sys; free = shutil.disk_usage(".").free / 1e9; sys.exit(free < 12 and f"{free:.1f} GB are free here; the installation needs up to 12")'
	@echo "Installing into $(VENV): $$($(PYTHON) --version), then the packages of constraints.txt (4 to 9 GB, about 3 minutes)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/pip install -qq --disable-pip-version-check pip==26.3
	@echo "1/3 frameworks, exporters, runtimes and tools"
	@$(BIN)/pip install -qq --constraint constraints.txt --editable '.[bench]' --group dev
# Apart and without its dependencies: jax2onnx asks for the CPU build of ONNX Runtime, which overwrites the GPU build's files.
	@echo "2/3 jax2onnx"
	@$(BIN)/pip install -qq --constraint constraints.txt --no-deps jax2onnx
	@echo "3/3 one build of ONNX Runtime"
	@$(BIN)/python -c 'from importlib.metadata import distributions as d; found = {x.name for x in d() if x.name.startswith("onnxruntime")}; assert len(found) == 1, found'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build
