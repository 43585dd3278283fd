# make verify   the parity pipeline on generated street scenes: a table of verdicts, logs, exit code
# make test     linting, types and all tests
#
# Both set up .venv first. A stamp written last tells that an installation is complete, so an
# interrupted one is taken up again and a finished one is left alone.
#
# make verify PADDLE=2.6.2   the same with another Paddle, in an environment and logs of its own

PYTHON ?= python3.11
CONFIG ?= configs/bisenetv1_cityscapes.yml
PADDLE ?= 3.3.1

ifeq ($(PADDLE),3.3.1)
VENV := .venv
REQUIREMENTS := requirements.txt
OUT :=
else
VENV := .venv-paddle-$(PADDLE)
REQUIREMENTS := requirements-paddle-$(PADDLE).txt
OUT := --out logs/$(notdir $(basename $(CONFIG)))-paddle-$(PADDLE)
ifeq ($(wildcard $(REQUIREMENTS)),)
$(error PADDLE=$(PADDLE): expected 3.3.1 or one of $(patsubst requirements-paddle-%.txt,%,$(wildcard requirements-paddle-*.txt)))
endif
endif
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: verify audit train_path test test_free test_torch test_paddle lint clean

$(STAMP): $(REQUIREMENTS) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement $(REQUIREMENTS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

verify: $(STAMP)
	$(BIN)/bisenet verify --config $(CONFIG) $(OUT)

audit: $(STAMP)
	$(BIN)/bisenet audit --config $(CONFIG) $(OUT)

# from Cityscapes' files to a figure, in a folder of its own: docs/training.md
train_path: $(STAMP)
	$(BIN)/python .ci/train_path.py

ifeq ($(PADDLE),3.3.1)
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

# one framework per process: the tests in tests/sides run once on each side, two parts at a time
test: lint
	$(MAKE) --no-print-directory --jobs 2 --output-sync=target test_free test_torch test_paddle

test_free: $(STAMP)
	$(BIN)/pytest -q

test_torch: $(STAMP)
	$(BIN)/pytest -q tests/sides --side torch

test_paddle: $(STAMP)
	$(BIN)/pytest -q tests/sides --side paddle
else
# linters and the tests without Paddle run in .venv alone
test: $(STAMP)
	$(BIN)/pytest -q tests/sides --side paddle
endif

clean:
	rm -rf .venv .venv-paddle-* data/fake build *.egg-info
