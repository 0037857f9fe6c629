# Two commands: `make demo` and `make test`. Both set up first, and both can be run again at any time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# One thread a worker: the tests' images are small, and threads that share a core wait for each other.
# The tests of a file stay together, except for the long ones (conftest.py).
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

.PHONY: setup demo test test-all lint

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml scripts/setup $(wildcard plugins/*/pyproject.toml)
	PYTHON=$(PYTHON) bash scripts/setup $(VENV)
	@touch $@

demo: setup
	$(BIN)/sslkit run method=byol backbone=shufflenetv2

test: setup
	$(TESTS) -m "not slow"

test-all: setup
	$(TESTS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
