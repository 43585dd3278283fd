# make verify   the parity pipeline on generated street scenes: a table of verdicts, logs, exit code
# make test     linting, types and all tests
#
# Both set up .venv first. A stamp written last tells that an installation is complete, so an
# interrupted one is taken up again and a finished one is left alone.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
CONFIG ?= configs/bisenetv1_cityscapes.yml

.PHONY: verify audit test lint clean

$(STAMP): requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

verify: $(STAMP)
	$(BIN)/bisenet verify --config $(CONFIG)

audit: $(STAMP)
	$(BIN)/bisenet audit --config $(CONFIG)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

# one framework per process: the tests in tests/sides run once on each side
test: lint
	$(BIN)/pytest -q
	$(BIN)/pytest -q tests/sides --side torch
	$(BIN)/pytest -q tests/sides --side paddle

clean:
	rm -rf $(VENV) data/fake build *.egg-info
