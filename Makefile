# `make run` and `make test` need Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test benchmark compare compare-root clean

run: $(VENV)/.installed
	$(BIN)/sslinfo fit -c quickstart

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile

benchmark: $(VENV)/.installed-test
	for file in tests/benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

# make compare ROOT=folder of CIFAR-10 images [SEEDS="0 1 2"] [STEPS=300]
SEEDS ?= 0 1 2
STEPS ?= 300

compare: compare-root $(VENV)/.installed
	$(BIN)/python tests/benchmarks/run_compare.py --root $(ROOT) --seeds $(SEEDS) --steps $(STEPS)

compare-root:
	@test -n "$(ROOT)" || { echo "make compare ROOT=FOLDER: CIFAR-10 as an image folder, train/<class>/* and test/<class>/*"; exit 1; }

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "sslinfo needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install -q -e '.[test]'
	@touch $@
