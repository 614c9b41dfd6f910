# Every target sets up what it needs: a virtual environment in .venv, from the lock files.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help run test lint format bench e2e lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/run ## set up and serve on http://127.0.0.1:8080 (ARGS="--port 9000" and the like)
	$(BIN)/sluice serve $(ARGS)

test: $(VENV)/dev ## set up and run every test, four files at a time (ARGS="-k name" and the like)
	$(BIN)/python -m pytest -n 4 --dist loadfile $(ARGS)

lint: $(VENV)/dev ## ruff, mypy strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev ## let ruff rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/dev ## measure against nginx and a bare aiohttp proxy (ARGS="--quick" and the like)
	$(BIN)/python -m tests.bench $(ARGS)

e2e: $(VENV)/dev ## set up what more end-to-end tests need: a model server, LangChain, Node's SDKs
	$(PIP) install --require-hashes --requirement requirements-e2e.lock
	if command -v npm >/dev/null && [ -d tests/e2e/node ]; then npm ci --silent --no-fund --no-audit --prefix tests/e2e/node; fi

lock: $(VENV)/dev ## resolve the dependencies anew
	$(PIP) install uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		pyproject.toml --group build --no-header -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		pyproject.toml --group dev --no-header -o requirements-dev.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		pyproject.toml --group e2e --no-header -o requirements-e2e.lock

clean: ## remove the environment and caches
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# The project itself goes in as a link to this folder; its builder is in the lock too.
$(VENV)/run: requirements.lock pyproject.toml | $(BIN)/python
	$(PIP) install --require-hashes --requirement requirements.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev: requirements-dev.lock pyproject.toml | $(BIN)/python
	$(PIP) install --require-hashes --requirement requirements-dev.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@ $(VENV)/run
