# Two commands do everything on a fresh machine with Python 3.11, pip and make:
#   make demo    set up, fine-tune real weights on examples/support, predict
#   make test    set up, run the checks and the tests
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(shell cksum < pyproject.toml | cut -d' ' -f1)

.PHONY: help setup demo test check docs clean

help:
	@sed -n '2,3s/^# *//p' Makefile

setup: $(READY)

$(READY): pyproject.toml
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) is not installed; name another one (3.11 or newer) with: make PYTHON=python3 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@rm -f $(VENV)/.ready-*
	@touch $@

demo: setup
	@$(BIN)/python examples/demo.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: setup check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

docs: setup
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/python tools/reference.py
	$(BIN)/mkdocs build --strict --site-dir build/site

clean:
	rm -rf $(VENV) .demo build dist
