# Two commands set everything up on a fresh machine: `make train` and `make test`.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
ARGS ?=

.PHONY: train test test-shell test-ray test-rest lint install clean

train: install
	$(BIN)/laminar train $(ARGS)

# Two of three parts run at once: those with Ray mostly wait for processes to start, but three at
# once get into each other's way on two cores.
test: install
	@$(MAKE) --no-print-directory --jobs 2 test-shell test-ray test-rest

test-shell: install
	$(BIN)/python -m pytest -m shell $(ARGS)

test-ray: install
	$(BIN)/python -m pytest -m ray $(ARGS)

test-rest: install
	$(BIN)/python -m pytest -m "not ray and not shell" $(ARGS)

.PHONY: test-load
# 200 jobs at once on a cluster of two CPUs: 20 minutes and both cores; ARGS='--jobs 20' for fewer.
test-load: install
	$(BIN)/python -m tests.load.run $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/shellcheck docker/*.sh .ci/run

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
