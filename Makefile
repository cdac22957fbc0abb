# Each target makes .venv and installs what it needs; nothing else has to be there but Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint types check clean

quickstart: .venv/.quickstart
	$(BIN)/hemstitch quickstart $(ARGS)

test: .venv/.test
	$(BIN)/python -m pytest $(ARGS)

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/.dev
	$(BIN)/mypy

check: lint types test

# One stamp per extra: reinstalled when pyproject.toml or the constraints change.
.venv/.%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@

clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache
