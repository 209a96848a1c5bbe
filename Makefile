# Two commands for a newcomer: `make app` and `make test`. Everything else is for those who work on the project.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
INSTALL := $(PIP) install --disable-pip-version-check --constraint constraints.txt --editable

.DEFAULT_GOAL := help
.PHONY: help app test engines lint faults bench samples clean

help: ## Say what each command does
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

app: $(VENV)/.installed ## Install what the app needs and open it on http://127.0.0.1:8501
	@$(BIN)/gradiometer app

test: $(VENV)/.installed-test ## Install what the tests need (Chromium too) and run them all
	@$(BIN)/python -m tests.browser.chromium
	$(BIN)/python -m pytest -n 2 --dist loadfile

engines: $(VENV)/.installed-test ## Tests on a real Slurm cluster, a Ray head and two hosts, all on this machine (root)
	@$(BIN)/python -m tests.browser.chromium
	@$(BIN)/python -m tests.engines

lint: $(VENV)/.installed-dev ## Format check, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

faults: $(VENV)/.installed-test ## The fault benchmark: real trainings broken on purpose
	$(BIN)/python -m tests.faults

bench: $(VENV)/.installed-test ## Speed of the monitor, the trainer and the run directory, as ratios
	$(BIN)/python -m tests.bench

samples: $(VENV)/.installed ## Train the sample runs again
	$(BIN)/python sample_runs/make.py

clean: ## Remove what the commands above made, runs/ excepted
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis tests/browser/artifacts build dist *.egg-info
	find app monitor trainer tests sample_runs -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else "Gradiometer needs Python 3.11 or newer; %s is %d.%d. Name another with: make app PYTHON=python3.12" % (sys.executable, v[0], v[1]))'
	@echo "[1/2] Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Could not make a virtual environment. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "[2/2] Installing PyTorch, Streamlit and the rest (about 1.5 GB, one to three minutes)"
	@$(INSTALL) .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	@echo "[2/2] Installing PyTorch, Streamlit, pytest and the rest (about 2 GB, one to three minutes)"
	@$(INSTALL) '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "[2/2] Installing the app, the tests' and the developers' tools"
	@$(INSTALL) '.[dev]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-test
