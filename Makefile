# Two commands do everything: `make demo` and `make test`. Both create .venv first (about 3 minutes, 7 GB).
PYTHON ?= python3
BIN := .venv/bin
FAST := --ignore=tests/faults --ignore=tests/browser

.PHONY: demo test test-all lint clean

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cxr_ray needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ...")'
	@echo "Creating .venv and installing the pinned packages (about 7 GB with PyTorch; minutes, once) ..."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: .venv/.installed
	$(BIN)/python -m cxr_ray.demo demo

test: .venv/.installed
	$(BIN)/python -m pytest $(FAST)

test-all: .venv/.installed
	$(BIN)/python -m pytest

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf .venv demo runs
