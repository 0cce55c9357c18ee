# The front door: `make demo` and `make test` need nothing but Python 3.10+.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# CPU builds are enough for everything below; on a GPU machine: make demo TORCH=torch
TORCH ?= torch==2.13.0

.PHONY: help demo test test-slow mutants check evaluate clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@

demo: $(VENV)/installed  ## install into .venv, then watch the shipped system solve what no agent can alone
	$(BIN)/recursivemas demo

test: $(VENV)/installed-test  ## the test suite (minutes)
	$(BIN)/python -m pytest -n 2

test-slow: $(VENV)/installed-test  ## the tests that take longer
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[serve,ray]"
	$(BIN)/python -m pytest -m slow

mutants: $(VENV)/installed-test  ## deliberate faults, one at a time, against the tests that ought to notice (20 minutes)
	$(BIN)/python tests/mutants/run.py

check: $(VENV)/installed-test  ## lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

evaluate: $(VENV)/installed-test  ## measure the shipped system again: figures and plot of the README
	$(BIN)/recursivemas evaluate --data arithmetic --levels 1 2 3 4 5 6 7 8 9 10 11 12 \
		--num-questions 1200 --batch-size 100 --output evaluation/results/sequential.json

clean:  ## remove what the commands above made
	rm -rf $(VENV) .pytest_cache .ruff_cache *.egg-info build
