# Everything that a developer or CI runs. `make` alone lists the targets.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
CONSTRAINTS := constraints.txt
# -c: what was tested is what is installed
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)

.DEFAULT_GOAL := help
.PHONY: help demo test test-lowest-modal check lint types fast-tests bench format clean constraints lock check-lock

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-demo: $(BIN)/python pyproject.toml $(CONSTRAINTS)
	$(INSTALL) -e '.[diffusion]'
	@touch $@

$(VENV)/.installed-dev: $(BIN)/python pyproject.toml $(CONSTRAINTS)
	$(INSTALL) -e '.[diffusion,training,plot,dev]'
	@touch $@ $(VENV)/.installed-demo

demo: $(VENV)/.installed-demo  ## draw eight red sevens on this machine
	$(BIN)/ml-experiments run ml_experiments.tasks.text_to_image.TextToImageExperiment prompt="a red handwritten seven" num_images=8

test: $(VENV)/.installed-dev  ## run every test
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

check: lint types fast-tests  ## lint, types and the fast tests, in under two minutes

lint: $(VENV)/.installed-dev  ## style, unused arguments, prints
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev  ## mypy, strict
	$(BIN)/mypy

fast-tests: $(VENV)/.installed-dev  ## the tests that are not marked slow
	$(BIN)/python -m pytest -n 2 --dist worksteal -q -m 'not slow'

bench: $(VENV)/.installed-dev  ## every benchmark, as tables
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

format: $(VENV)/.installed-dev  ## rewrite the code in the house style
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format -q .

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) $(LOWEST) .mypy_cache .ruff_cache .pytest_cache .hypothesis build

constraints: $(VENV)/.installed-dev  ## write the installed versions to constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+cpu$$//' > $(CONSTRAINTS)

LOWEST := .venv-lowest
# modal 1.6.0 wants an older protobuf than the tested one
$(LOWEST)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(LOWEST)
	grep -vE '^(modal|protobuf)==' $(CONSTRAINTS) > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/constraints.txt modal==1.6.0 pytest pytest-timeout pytest-xdist hypothesis -e .
	@touch $@

test-lowest-modal: $(LOWEST)/.installed  ## the emulator's tests against the lowest supported modal
	$(LOWEST)/bin/python -m pytest -n 2 --dist worksteal -q tests/modal_emulator

lock: $(VENV)/.installed-dev  ## compile the lock of the GPU image anew
	$(BIN)/python scripts/gpu_lock.py make

check-lock: $(VENV)/.installed-dev  ## let pip resolve the lock of the GPU image
	$(BIN)/python scripts/gpu_lock.py check
