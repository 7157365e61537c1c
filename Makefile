# Everything runs from here; the only requirement is Python 3.11 or newer.
#   make demo    adapt the bundled model to OpenMoji and print zero-shot vs adapted
#   make test    the test suite
#   make check   lint, types, import directions, documentation coverage
#   make bench   the side-by-side measurements in bench/ (ARGS=--smoke for a try)
# PYTHON=...   the interpreter that makes the environment   VENV=...   where it lives
# ARGS=...     passed to the command                        PIP_ARGS=... passed to pip

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python3.14; do \
  "$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
  && { echo "$$p"; break; }; done)
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); echo $$((n < 8 ? n : 8)))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP_VENV := $(VENV)/.stamp-venv
STAMP_DEMO := $(VENV)/.stamp-demo
STAMP_DEV := $(VENV)/.stamp-dev

.PHONY: help demo test check bench clean
help:
	@sed -n '2,8s/^# //p' Makefile

# torch comes first and alone: its pinned version decides the rest of the resolution.
$(STAMP_VENV): constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 with venv found; name one with" \
	  "make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "environment: $(VENV), made by $(PYTHON) ($$($(PYTHON) -V))"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install $(PIP_ARGS) -q -c constraints.txt torch
	@touch $@

$(STAMP_DEMO): $(STAMP_VENV) pyproject.toml
	$(PIP) install $(PIP_ARGS) -q -c constraints.txt -e ".[demo]"
	@touch $@

$(STAMP_DEV): $(STAMP_VENV) pyproject.toml
	$(PIP) install $(PIP_ARGS) -q -c constraints.txt -e ".[dev]"
	@# Alone, because it would bring a torchvision that does not fit this torch.
	$(PIP) install $(PIP_ARGS) -q -c constraints.txt --no-deps open_clip_torch
	@touch $(STAMP_DEMO) $@

demo: $(STAMP_DEMO)
	$(BIN)/crossadapt demo $(ARGS)

test: $(STAMP_DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(ARGS)

check: $(STAMP_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python
	$(BIN)/python scripts/check_imports.py
	$(BIN)/python scripts/check_docs.py
	$(BIN)/python scripts/results.py

bench: $(STAMP_DEV)
	$(BIN)/python bench/_all.py $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
