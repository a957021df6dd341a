# `make run` and `make test` do everything on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: run test test-slow lint format clean

run: $(READY)  ## Train and compare the methods on the embedded digits
	$(BIN)/python -m experiments compare

test: $(READY)  ## The default test suite
	$(BIN)/python -m pytest -n auto --dist worksteal

test-slow: $(READY)  ## The tests that take minutes, compiled as users' programs are
	XLA_FLAGS=--xla_force_host_platform_device_count=8 $(BIN)/python -m pytest -m slow

lint: $(READY)  ## Lint, format check and static types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: $(READY)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:
	rm -rf $(VENV) build dist

# The stamp is written last, so that an interrupted installation is repeated.
$(READY): requirements.txt
	$(PYTHON) -c "import sys; v = sys.version_info; sys.exit(v < (3, 11) and f'Python 3.11 or newer is needed, found {v.major}.{v.minor}: set PYTHON=')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $(READY)
