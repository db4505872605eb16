# Each target works from nothing: it makes .venv, installs what it needs, then does its job.
# PYTHON names the interpreter (3.10 to 3.13) that .venv is made of.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# In the environment too, so that packages built from source are built with pinned tools.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(PIP_CONSTRAINT)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
INSTALL := $(BIN)/python -m pip install --quiet -c constraints.txt
# One thread in each of the two test processes: tests share two cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: demo test bench lint format clean
.DEFAULT_GOAL := test

$(VENV)/.made:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 13) else "structprune needs Python 3.10 to 3.13, this is %d.%d: make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv --clear $(VENV)
	touch $@

$(VENV)/.ready-demo: pyproject.toml constraints.txt | $(VENV)/.made
	$(INSTALL) -e '.[train]'
	touch $@

$(VENV)/.ready-dev: pyproject.toml constraints.txt | $(VENV)/.made
	$(INSTALL) -e '.[train,report,dev]'
	touch $(VENV)/.ready-demo $@

demo: $(VENV)/.ready-demo
	$(BIN)/structprune demo --out runs/demo

test: $(VENV)/.ready-dev
	$(ONE_THREAD) $(BIN)/python -m pytest -q -n 2 -m "not gpu and not nightly"

bench: $(VENV)/.ready-dev
	mkdir -p runs/bench
	$(BIN)/python -m benchmarks.latency --out runs/bench/latency.json --plot runs/bench/latency.png
	$(BIN)/python -m benchmarks.forecast --out runs/bench/forecast.json
	$(BIN)/python -m benchmarks.latency_targets --out runs/bench/latency_targets.json
	$(BIN)/python -m benchmarks.latency_accuracy --out runs/bench/latency_accuracy.json
	$(BIN)/python -m benchmarks.pruning_speed --out runs/bench/pruning_speed.json
	$(BIN)/python -m benchmarks.full_size --out runs/bench/full_size.json

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
