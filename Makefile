# make bench   everything that is missing, then the quick study; ends with a table and the path of the results
# make test    everything that is missing, then all checks
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: bench test test-full bench-training bench-wrapper bench-serving bench-load bench-statistics bench-report clean

bench: $(READY)
	$(BIN)/medserve run quick

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# What takes too long for every change: all architectures at full width and 224 px with all their exports, the long
# attacks, every moment of a kill.
test-full: $(READY)
	$(BIN)/pytest -m full -n 2 --dist loadgroup

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

# The report of 200 cells and ten million samples: time, memory, size, first paint.
bench-report: $(READY)
	$(BIN)/python -m loadtest.benchmark report

$(READY): pyproject.toml constraints.txt Makefile
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "medserve needs Python 3.11; make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check pip==26.3
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]' --group dev
# Apart and without its dependencies: jax2onnx asks for the CPU build of ONNX Runtime, which overwrites the GPU build's files.
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps jax2onnx
	$(BIN)/python -c 'from importlib.metadata import distributions as d; found = sorted(x.name for x in d() if x.name.startswith("onnxruntime")); assert found == ["onnxruntime-gpu"], found'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build
