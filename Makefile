# make sweep   the quickstart: 2 to 4 minutes on 2 CPU cores, no download after the install, no GPU needed
# make test    the unit tests
#
# Both make .venv first, where it is missing, and install what constraints.txt names. Options go in ARGS:
#   make sweep ARGS="--set search.num_trials=4"

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

export RAY_USAGE_STATS_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help sweep test test-all check clean

help:
	@echo "make sweep      find the best adapter for the embedded base and task (configs/quickstart.yaml)"
	@echo "make test       the unit tests: at most 90 seconds on 2 cores"
	@echo "make test-all   all the others: contracts, Ray, whole sweeps, pages in a browser, and what is marked slow"
	@echo "make check      ruff, mypy, lint-imports"
	@echo "make clean      remove the environment, caches and build files; results/ stays"

sweep: $(VENV)/.installed-test
	$(BIN)/python -m qlora_ray.sweep $(ARGS)

# pyproject.toml gives pytest its -q; a second one would hide the summary. A file's tests share what they build, so a
# file is not split between processes.
test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile -rfEs -m unit tests/unit $(ARGS)

# Three files at a time, on two cores: tests that start Ray wait more than they compute. Files go out in their own order,
# in which the long ones (contracts, e2e, ray) come first, and not by how many tests they have.
test-all: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -rfEs -m 'not unit and not gpu' $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp per set of extras: repeated calls install nothing until one of the two files changes.
$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing into $(VENV); the first time this takes a few minutes, torch and Ray are large"
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[test]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing into $(VENV); the first time this takes a few minutes, torch and Ray are large"
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[test,dev]'
	@touch $@

# pip, not python, is the target: an environment that could not get pip is a half-made one.
$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not there. Install Python 3.11 or later, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed, got $$($(PYTHON) --version 2>&1). Name another one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
