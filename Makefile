# Two commands do all the set-up: `make demo` and `make test`. `make help` lists the others.
.DEFAULT_GOAL := help
.PHONY: help install demo demo-docker dev doctor scenario test test-all lint bench bench-serving bench-drift bench-estimation bench-monitoring soak stop clean distclean

VENV := $(or $(strip $(VENV)),.venv)
BIN := $(VENV)/bin
# The newest Python that the project supports; `make PYTHON=/path/to/python3.12 demo` chooses another.
PYTHON := $(or $(strip $(PYTHON)),$(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done))
# Newer versions of pip print what setuptools warns of at every editable installation.
PIP_INSTALL := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

help: ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## only set up: virtual environment and packages

demo: $(VENV)/.installed ## run the whole loop once, from raw data to reports
	@$(BIN)/python -m mlschool_dagster.local demo

demo-docker: $(VENV)/.installed ## run the loop through the containers of infra/docker, killing some (needs Docker)
	@$(BIN)/python -m mlschool_dagster.local demo-docker

dev: $(VENV)/.installed ## leave UI, daemon, MLflow and endpoint running until Ctrl-C
	@$(BIN)/python -m mlschool_dagster.local dev

doctor: $(VENV)/.installed ## say what of the environment is missing or odd
	@$(BIN)/python -m mlschool_dagster.local doctor

scenario: $(VENV)/.installed ## run a scenario on an isolated platform: NAME=..., none lists them
	@$(BIN)/python -m mlschool_dagster.local scenario $(NAME)

test: $(VENV)/.installed-dev ## run the tests
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test-all: $(VENV)/.installed-dev ## run the tests, the slow ones included
	@$(BIN)/python -m pytest -m "slow or not slow"

lint: $(VENV)/.installed-dev ## check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(VENV)/.installed-dev ## measure training against its peers, side by side
	@PYTHONPATH="$(CURDIR)" $(BIN)/python benchmarks/training

bench-serving: $(VENV)/.installed-dev ## measure the endpoint against its peers, side by side (needs wrk)
	@PYTHONPATH="$(CURDIR)" $(BIN)/python benchmarks/serving

bench-drift: $(VENV)/.installed-dev ## measure false alarms and power of drift detection, beside its peers
	@PYTHONPATH="$(CURDIR)" $(BIN)/python benchmarks/drift

bench-estimation: $(VENV)/.installed-dev ## measure accuracy estimated without labels against the truth of simulated worlds
	@$(BIN)/python benchmarks/estimation

bench-monitoring: $(VENV)/.installed-dev ## measure what a window costs to monitor, by its rows and by the history
	@PYTHONPATH="$(CURDIR)" $(BIN)/python benchmarks/monitoring

soak: $(VENV)/.installed-dev ## ten minutes of load with swaps, labelling and monitoring
	@SOAK_SECONDS=600 $(BIN)/python -m pytest -m slow -k soak -o timeout=900 -s

stop: $(VENV)/.installed ## stop whatever of the platform still runs
	@$(BIN)/python -m mlschool_dagster.local stop

clean: ## stop what runs and remove all state
	@if [ -e "$(VENV)/.installed" ]; then $(BIN)/python -m mlschool_dagster.local clean; else \
		home="$${MLSCHOOL_HOME:-.mlschool}"; \
		if [ -f "$$home/.made-by-mlschool" ] && [ ! -L "$$home" ]; then rm -rf -- "$$home"; \
		elif [ -e "$$home" ]; then echo "$$home is left as it is: run make install first, or delete it yourself."; exit 1; fi; fi

distclean: clean ## remove the virtual environment as well
	@if [ -f "$(VENV)/pyvenv.cfg" ] && [ ! -L "$(VENV)" ]; then rm -rf -- "$(VENV)"; fi

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 was found; install one, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot create virtual environments; install its venv package (Debian, Ubuntu: apt-get install python3-venv)."; exit 1; }
	@echo "creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing packages (some minutes, once)"
	@$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing the packages for tests"
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@
