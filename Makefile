# `make run` is the main job, on embedded data; `make check` is for every day; `make test` runs all tests but those of
# whole journeys, which `make test-e2e` runs; CI runs both, the first as `make coverage`.
# Each sets up a virtual environment inside the checkout first; nothing else is needed but Python 3.11, make and gcc.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
OUT    ?= runs/digits

.PHONY: run check test coverage test-e2e lint style types unit setup clean

run: setup
	$(BIN)/pruneseal run --out $(OUT) --clients 10 --rounds 40 --sparsity 0.95 --verify $(ARGS)

# Before every commit: in two minutes on two cores what `make test` needs eight for. It leaves out the tests whose marks
# (pyproject.toml) say that they take long, `slow` and `e2e`; and Hypothesis tries fewer examples.
check: setup
	$(MAKE) --jobs=2 --output-sync=target style types unit

unit: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -q -m "not slow and not e2e" --hypothesis-profile=daily $(ARGS)

test: setup lint
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not e2e" $(COVER) $(ARGS)

# The same tests, and which lines and branches they reach; counting doubles their time. The protocol, and where keys are
# made, read and used, are covered to the last branch. The import contracts keep this list short: what learns is below
# edge_client/, in folders that hold no key.
KEYED := protocol/*,edge_client/*.py,fleet/provisioning/*,fleet/running/verify.py

coverage: COVER := --cov --cov-report=
coverage: test
	$(BIN)/coverage report
	$(BIN)/coverage report --include='$(KEYED)' --fail-under=100

# Whole journeys: runs from the command line, and deployments of processes and containers, their faults and their attacks,
# with minutes of waiting for deadlines.
test-e2e: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m e2e $(ARGS)

lint: style types

style: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache

types: setup
	$(BIN)/mypy

setup: $(VENV)/.ready

# torch first, in a range for which a CPU build is at hand, so that no accelerator packages are pulled in.
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet 'torch>=2.8,<2.14'
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
