# `make run` is the main job, on embedded data; `make test` and `make test-deployment` are everything that CI checks.
# Each sets up a virtual environment inside the checkout first; nothing else is needed but Python 3.11, make and gcc.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
OUT    ?= runs/digits

.PHONY: run test test-deployment lint setup clean

run: setup
	$(BIN)/pruneseal run --out $(OUT) --clients 10 --rounds 40 --sparsity 0.95 --verify $(ARGS)

# Everything in protocol/, and every file that touches a key, is covered to the last branch.
KEYED := protocol/*,edge_client/keys.py,edge_client/cipher.py,edge_client/round.py,edge_client/client.py,fleet/provisioning/kits.py,fleet/running/verify.py

test: setup lint
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not deployment" --cov --cov-report= $(ARGS)
	$(BIN)/coverage report
	$(BIN)/coverage report --include='$(KEYED)' --fail-under=100

# A whole deployment of real processes and containers, its faults and its attacks: minutes of waiting for deadlines.
test-deployment: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m deployment $(ARGS)

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

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
