# Everything that a fresh Debian or Ubuntu needs is one of these away:
#
#   make demo     install into .venv, train a small network, compile it for two devices
#   make test     install into .venv, run the tests
#   make check    install into .venv, lint, type-check, check who imports whom
#   make clean    remove what these made, .venv included
#
# PYTHON chooses the interpreter (3.10 to 3.13): make demo PYTHON=python3.12
# Package indexes, proxies and caches are pip's business: configure pip, not this file.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.hwprune-installed

.DEFAULT_GOAL := help
.PHONY: help install demo test check clean

help:
	@sed -n 's/^#   //p' Makefile

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/python -m pytest -q tests/test_import_arrows.py

# The editable install makes the checkout itself importable, and puts `hwprune` into .venv/bin.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "hwprune needs Python 3.10 to 3.13, and $(PYTHON) is not one of them (or is absent)."; \
	  echo "Name another one: make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || { $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "Python's venv module is not complete. On Debian and Ubuntu:"; \
	  echo "    sudo apt-get install python3-venv"; exit 1; }; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): minutes the first time, most of them for torch."
	$(BIN)/python -m pip install --quiet --constraint constraints.txt scikit-build-core
	$(BIN)/python -m pip install --constraint constraints.txt --no-build-isolation \
	  --editable '.[compile,timm,dev]'
	@touch $@

clean:
	rm -rf $(VENV) demo-out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
