# Two commands set everything up on a fresh machine: `make train` and `make test`.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
ARGS ?=

.PHONY: train test lint install clean

train: install
	$(BIN)/laminar train $(ARGS)

# Tests that wait for Ray's processes to start leave room for the others beside them.
test: install
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/.installed

# uv unpacks the 5 GB of torch several times faster than pip; pip fetches uv.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 12) else "Python must be 3.11 or 3.12 (got %d.%d); run make PYTHON=python3.12" % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV)
