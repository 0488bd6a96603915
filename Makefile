# Everything that a developer or CI runs. `make` alone lists the targets.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
CONSTRAINTS := constraints.txt
# -c: what was tested is what is installed
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)
INSTALL := $(BIN)/python $(PIP_INSTALL)
# pip compiles what it copies, not what it links; where Python may write no bytecode, each process would
COMPILE := $(BIN)/python -m compileall -q ml_experiments modal_emulator
unexport PYTHONDONTWRITEBYTECODE
# tests wait for processes and servers while others compute; with more of them at a time, two cores are no faster
PYTEST := -m pytest -n 4 --dist worksteal -q

.DEFAULT_GOAL := help
.PHONY: help demo test test-again test-python test-modal contract-modal prove-modal gpu-image check lint types fast-tests docs docs-serve \
	bench test-gpu gpu-wheels format build clean constraints lock check-lock

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-demo: $(BIN)/python pyproject.toml $(CONSTRAINTS)
	$(INSTALL) -e '.[diffusion]'
	@$(COMPILE)
	@touch $@

# dependency groups need pip 25.1, which is newer than the pip that Python 3.11 brings
$(VENV)/.installed-dev: $(BIN)/python pyproject.toml $(CONSTRAINTS)
	$(INSTALL) pip
	$(INSTALL) -e '.[diffusion,diffusion-extras,training,results,sweep,slurm,plot]' --group dev
	@$(COMPILE)
	@touch $@ $(VENV)/.installed-demo

demo: $(VENV)/.installed-demo  ## draw eight red sevens on this machine
	$(BIN)/ml-experiments run ml_experiments.tasks.text_to_image.TextToImageExperiment prompt="a red handwritten seven" num_images=8

test: $(VENV)/.installed-dev  ## run every test
	$(BIN)/python $(PYTEST)

test-again: $(VENV)/.installed-dev  ## run what failed in the last run of the tests, one after the other
	$(BIN)/python -m pytest -q --last-failed --last-failed-no-failures none

check: lint types fast-tests  ## lint, types and the fast tests, in under two minutes

lint: $(VENV)/.installed-dev  ## style, unused arguments, prints
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev  ## mypy, strict
	$(BIN)/mypy

fast-tests: $(VENV)/.installed-dev  ## the tests that are not marked slow
	$(BIN)/python $(PYTEST) -m 'not slow'

# for a machine with a GPU and nothing but Python and torch: wheels/ brings the rest
GPU_PYTHON ?= python3
gpu-wheels: $(VENV)/.installed-dev  ## download what `make test-gpu` needs besides torch into wheels/
	$(BIN)/python -m pip freeze --exclude-editable | grep -viE '^(torch|nvidia-|triton|submitit|uv)' > wheels.txt
	$(BIN)/python -m pip download --quiet --no-deps -d wheels -r wheels.txt
	rm wheels.txt

test-gpu:  ## run the checks that need a CUDA GPU, with wheels/ if it is there
	if [ -d wheels ]; then $(GPU_PYTHON) -m pip install --quiet --no-index --no-deps wheels/*.whl; fi
	PYTHONPATH=. $(GPU_PYTHON) -m pytest -m gpu tests/gpu -q -s -rs

docs: $(VENV)/.installed-dev  ## build the documentation in site/; a warning is an error
	$(BIN)/zensical build --clean --strict

docs-serve: $(VENV)/.installed-dev  ## show the documentation while you write it
	$(BIN)/zensical serve

bench: $(VENV)/.installed-dev  ## every benchmark, as tables
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

format: $(VENV)/.installed-dev  ## rewrite the code in the house style
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format -q .

build: $(VENV)/.installed-dev  ## build the wheel and the source archive, and check what they say
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*

clean:  ## remove the virtual environments, caches and what was built
	rm -rf $(VENV) .venv-* .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist site

constraints: $(VENV)/.installed-dev  ## write the installed versions to constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+cpu$$//' > $(CONSTRAINTS)
	$(BIN)/python -m pip freeze --all | grep '^pip==' >> $(CONSTRAINTS)

# another version of Python, without torch: PyPI has no CPU build of it
VERSION ?= 3.13
OTHER := .venv-$(VERSION)
OTHER_PYTHON = $(firstword $(wildcard $(HOME)/.pyenv/versions/$(VERSION).*/bin/python) python$(VERSION))
TESTS ?=
$(OTHER)/.installed: pyproject.toml $(CONSTRAINTS)
	$(OTHER_PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/python $(PIP_INSTALL) pip
	$(OTHER)/bin/python $(PIP_INSTALL) -e '.[results,sweep,slurm,plot]' --group test
	@touch $@

test-python: $(OTHER)/.installed  ## run the tests on another Python: VERSION=3.13 TESTS="-m 'not slow'"
	$(OTHER)/bin/python $(PYTEST) $(TESTS)

# VERSION is one of modal here; without it, the lowest supported one
MODAL := $(if $(filter file,$(origin VERSION)),1.6.0,$(VERSION))
OTHER_MODAL := .venv-modal-$(MODAL)
# modal 1.6.0 wants an older protobuf than the tested one
$(OTHER_MODAL)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(OTHER_MODAL)
	grep -vE '^(modal|protobuf)==' $(CONSTRAINTS) > $(OTHER_MODAL)/constraints.txt
	$(OTHER_MODAL)/bin/python -m pip install --quiet --disable-pip-version-check -c $(OTHER_MODAL)/constraints.txt pip
	$(OTHER_MODAL)/bin/python -m pip install --quiet --disable-pip-version-check -c $(OTHER_MODAL)/constraints.txt modal==$(MODAL) -e . --group test
	@touch $@

test-modal: $(OTHER_MODAL)/.installed  ## run the local server's tests with another modal: VERSION=1.6.2
	$(OTHER_MODAL)/bin/python $(PYTEST) $(or $(TESTS),tests/modal_emulator)

contract-modal: $(VENV)/.installed-dev  ## hold Modal itself to the local server's contract: asks first, GPU=1 for a T4
	$(BIN)/python scripts/contract_modal.py

prove-modal: $(VENV)/.installed-dev  ## run the documented ways to use this package on Modal itself: asks first
	$(BIN)/python scripts/prove_modal.py

gpu-image: $(VENV)/.installed-dev  ## build the GPU image on this machine (5 GB), and run the demo in it
	$(BIN)/modal-emulator run --images build -- $(BIN)/ml-experiments run ml_experiments.tasks.text_to_image.TextToImageExperiment prompt="a red handwritten seven" num_images=8 --gpu t4

lock: $(VENV)/.installed-dev  ## compile the lock of the GPU image anew
	$(BIN)/python scripts/gpu_lock.py make

check-lock: $(VENV)/.installed-dev  ## let pip resolve the lock of the GPU image
	$(BIN)/python scripts/gpu_lock.py check
