# Each target makes .venv and installs what it needs; nothing else has to be there but Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test fidelity lint types check reproduction reproduction-quick clean

quickstart: .venv/.quickstart
	$(BIN)/hemstitch quickstart $(ARGS)

test: .venv/.test
	$(BIN)/python -m pytest $(ARGS)

# Parity with torch-fidelity, which asks for torchvision: both beside the environment, neither in it.
# HEMSTITCH_FIDELITY: where it cannot be imported these tests fail, and are not skipped.
fidelity: .venv/.test .venv/fidelity/.installed
	HEMSTITCH_FIDELITY=1 PYTHONPATH=.venv/fidelity $(BIN)/python -m pytest tests/fidelity $(ARGS)

.venv/fidelity/.installed: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	rm -rf .venv/fidelity
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv/fidelity \
	    torch-fidelity==0.4.0 torchvision==0.28.0
	touch $@

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/.dev
	$(BIN)/mypy

check: lint types test

# Fashion-MNIST is Debian's package dataset-fashion-mnist.
reproduction: .venv/.test
	$(BIN)/python -m benchmarks.reproduction --workers 2 $(ARGS)

reproduction-quick: .venv/.test
	rm -rf build/reproduction-quick
	$(BIN)/python -m benchmarks.reproduction --part quick --workers 2 --out build/reproduction-quick $(ARGS)

# One stamp per extra: reinstalled when pyproject.toml or the constraints change.
.venv/.%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@

clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache
