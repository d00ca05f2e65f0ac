# Everything a person does here. `make` alone prints the targets.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

RECENT := import sys; sys.exit(sys.version_info < (3, 11))
# whole files to a process, those that take longest first (tests/conftest.py)
SPREAD := --dist loadfile --no-loadscope-reorder
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done

.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow coverage lint real docs format clean

help:  ## Print the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  Variables: PYTHON (interpreter for the environment), VENV (its folder), ARGS (overrides for train)"

setup: $(STAMP)  ## Create the virtual environment and install everything, pinned

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c '$(RECENT)' || { echo "$(PYTHON) is not Python 3.11 or newer: make setup PYTHON=python3.11" >&2; exit 2; }
	@if test -e $(BIN)/python && ! $(BIN)/python -c '$(RECENT)'; then \
	  echo "$(VENV) was made with another Python than is needed: made again"; $(PYTHON) -m venv --clear $(VENV); fi
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt pip setuptools
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@

train: $(STAMP)  ## Run the main job: adapt the embedded model, evaluate all 47 tasks, print the table
	$(BIN)/python train.py $(ARGS)

test: $(STAMP)  ## Run the tests (without the slow ones)
	$(BIN)/python -m pytest -n 2 $(SPREAD) -m "not slow"

# one thread a process: two that share two cores slow each other down many times
test-slow: $(STAMP)  ## Run the slow tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(SPREAD) -m slow

coverage: $(STAMP)  ## Run the tests (without the slow ones) and say which lines they do not reach
	$(BIN)/python -m pytest -n 2 $(SPREAD) -m "not slow" --cov=lime --cov-report=term-missing:skip-covered

lint: $(STAMP)  ## Check style and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

real: $(STAMP)  ## Make data/smol_llava, a small model of real pretrained weights (downloads 183 MB; 45 minutes)
	$(BIN)/python scripts/real_backbone.py data/smol_llava $(ARGS)

docs: $(STAMP)  ## Build the documentation site in site/, strictly; site/index.html opens without a server
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

format: $(STAMP)  ## Format the code and sort the imports
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean:  ## Remove caches and build products (outputs, data and the environment stay)
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find lime tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
