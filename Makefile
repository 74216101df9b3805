# make demo    the main job on real data, in minutes, without a GPU
# make test    the whole test suite; make quick: under a minute
PYTHON ?= python3
BIN := .venv/bin
RECIPE ?= examples/cifar10/recipe.toml
TARGET ?= intel-cpu

.PHONY: demo test quick lint wheel clean

demo: .venv/ready
	$(BIN)/edgeprune $(TARGET) run $(RECIPE)

test: .venv/ready
	$(BIN)/python -m pytest

quick: .venv/ready
	$(BIN)/python -m pytest -m "not slow and not device"

lint: .venv/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

wheel: .venv/ready
	$(BIN)/pip wheel --no-deps --wheel-dir dist .

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "edgeprune needs Python 3.11 or newer; say which: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[openvino,sign,dev]'
	touch .venv/ready

clean:
	rm -rf .venv runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
