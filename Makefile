# make demo    the main job on real data, in minutes, without a GPU
# make example NAME=detection    one of examples/, the same way
# make docs    the pages of docs/ and the Python reference, in site/; a broken link fails
# make test    the whole test suite; make quick: under a minute. One worker more than cores: many tests wait.
PYTHON ?= python3
BIN := .venv/bin
RECIPE ?= examples/cifar10/recipe.toml
TARGET ?= intel-cpu
NAME ?= detection
WORKERS := $(shell $(PYTHON) -c 'import os; print(min(4, 1 + (os.cpu_count() or 1)))')
SIDE_BY_SIDE ?= -n $(WORKERS) --dist loadfile --no-loadscope-reorder
CORES := $(shell $(PYTHON) -c 'import os; print(min(4, os.cpu_count() or 1))')

.PHONY: demo example test quick lint docs wheel clean

demo: .venv/ready
	$(BIN)/edgeprune $(TARGET) run $(RECIPE)

example: .venv/ready
	$(BIN)/edgeprune $(TARGET) run examples/$(NAME)/recipe.toml

test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE)

quick: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(subst -n $(WORKERS),-n $(CORES),$(SIDE_BY_SIDE)) --durations=5 -m "not slow and not long and not device"

lint: .venv/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: .venv/ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: .venv/ready
	$(BIN)/pip wheel --no-deps --wheel-dir dist .

.venv/ready: Makefile pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "edgeprune needs Python 3.11 or newer; say which: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[openvino,sign,encrypt,detection,metrics,text,tune,dev]'
	touch .venv/ready

clean:
	rm -rf .venv runs build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
