# make help says what there is. Another interpreter: make PYTHON=python3.12 test
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= -n auto --dist loadfile
WAFERVLM_DATA ?= ../shared/data

BIN := $(VENV)/bin
PY := $(BIN)/python
STAMP := $(VENV)/.installed

export WAFERVLM_DATA
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help venv test test-slow demo lint verify-nano wheel clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: $(STAMP)  ## Set up the environment in .venv

# torch goes first and pinned: left to the resolver it comes with gigabytes of CUDA packages.
$(STAMP): pyproject.toml setup.cfg constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" \
	  || { echo "Python 3.11 or newer is needed; name one, as in: make PYTHON=python3.12 venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet --constraint constraints.txt torch
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[workshop,test,lint]"
	@touch $@

# One thread for each worker: a second one on a busy core makes a step several times slower.
test: venv  ## Run all tests but those marked slow
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(PY) -m pytest $(PYTEST_ARGS)

test-slow: venv  ## Run the tests marked slow, one after the other: some minutes, and up to 8 GB of memory
	TOKENIZERS_PARALLELISM=false $(PY) -m pytest -m slow

demo: venv  ## Run the whole line on real wafer maps from $WAFERVLM_DATA (else synthetic ones), at most 10 minutes
	$(BIN)/wafervlm run train/nano/demo.toml

lint: venv  ## ruff, mypy --strict and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10 wafervlm
	$(BIN)/lint-imports --no-logo

verify-nano: venv  ## Rebuild the embedded bundle from its base and adapter, and compare its scores
	$(PY) -m export.nano --check

wheel: venv  ## Build the wheel into dist/
	$(PY) -m build --wheel --no-isolation --outdir dist

clean:  ## Remove what was built, not the environment
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
