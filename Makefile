# Two commands set everything up on a fresh machine: `make train` and `make test`.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
ARGS ?=

.PHONY: train test test-commands test-ray test-engine test-unit test-service lint install clean

train: install
	$(BIN)/laminar train $(ARGS)

# Two of five parts run at once, for three get into each other's way on two cores. The long ones come
# first; of the others, the order in which both cores end at about the same time.
test: install
	@$(MAKE) --no-print-directory --keep-going --jobs 2 \
		test-commands test-ray test-unit test-engine test-service

test-commands: install # in processes of their own, with a Ray or a cluster of their own
	$(BIN)/python -m pytest tests/end_to_end $(ARGS)

test-ray: install # in a Ray that all tests share
	$(BIN)/python -m pytest tests/on_ray $(ARGS)

test-engine: install # against the reference, without Ray
	$(BIN)/python -m pytest tests/equivalence $(ARGS)

test-unit: install
	$(BIN)/python -m pytest tests/unit tests/property $(ARGS)

test-service: install # on a cluster that answers by script, and its page in Chromium
	$(BIN)/python -m pytest tests/service $(ARGS)

.PHONY: test-load test-outage
# The cluster of the end-to-end tests is lost while a job runs, twice: two minutes of two cores.
test-outage: install
	$(BIN)/python -m pytest tests/end_to_end -m outage $(ARGS)

# 200 jobs at once to four CPUs of Ray's: 35 minutes of two cores. ARGS='--jobs 20' for fewer,
# ARGS=--record to keep what came of it in tests/load.
test-load: install
	$(BIN)/python -m tests.load.run $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/shellcheck docker/*.sh benchmarks/*/*.sh .ci/run

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
