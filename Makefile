# Needs Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest

.DEFAULT_GOAL := help
.PHONY: help run test test-lowest benchmark compare compare-root clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: $(VENV)/.installed  ## train the quickstart on handwritten digits: about a minute on two cores
	$(BIN)/sslinfo fit -c quickstart

test: $(VENV)/.installed-test  ## lint, types and all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-lowest: $(LOWEST)/.installed  ## a few minutes of tests with the oldest packages that pyproject.toml allows
	$(LOWEST)/bin/pytest -q --disable-warnings $(SMOKE)

# Every dependency of the package is used by one of these, and every module of the package is imported.
SMOKE := sslinfo tests/information tests/models tests/evaluation tests/cli tests/test_optim.py \
	$(addprefix tests/objectives/test_,base.py entropy.py vicreg.py simclr.py barlow_twins.py byol.py wmse.py) \
	$(addprefix tests/data/,test_datasets.py test_datamodule.py views/test_resample.py) \
	$(addprefix tests/callbacks/test_,linear_probe.py knn_probe.py run_summary.py) \
	tests/callbacks/test_information_monitor.py::test_tensorboard_holds_scalars_pictures_and_text

benchmark: $(VENV)/.installed-test  ## times and memory of the parts
	for file in tests/benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

# make compare ROOT=folder of CIFAR-10 images [SEEDS="0 1 2"] [STEPS=300]
SEEDS ?= 0 1 2
STEPS ?= 300

compare: compare-root $(VENV)/.installed  ## the paper's ten methods on ROOT=folder of CIFAR-10 images
	$(BIN)/python tests/benchmarks/run_compare.py --root $(ROOT) --seeds $(SEEDS) --steps $(STEPS)

compare-root:
	@test -n "$(ROOT)" || { \
		echo "make compare ROOT=FOLDER: CIFAR-10 as an image folder, train/<class>/* and test/<class>/*"; exit 1; }

clean:  ## remove the environments, runs and caches
	rm -rf $(VENV) $(LOWEST) runs .pytest_cache .mypy_cache .ruff_cache

# $(call make-environment,FOLDER)
define make-environment
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || { \
	echo "sslinfo needs Python 3.11 or newer; $(PYTHON) --version says: $$($(PYTHON) --version 2>&1)" >&2; \
	echo "Name another: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
	exit 1; }
@$(PYTHON) -m venv $(1) || { rm -rf $(1); exit 1; }
endef

# $(call install,FOLDER,ARGUMENTS OF PIP)
define install
@$(1)/bin/python -m pip install -q --disable-pip-version-check $(2) || { \
	echo "pip could not install sslinfo into $(1): its reason stands above." >&2; \
	echo "If it retried or found no versions, it reached no package registry: behind a proxy set HTTPS_PROXY," >&2; \
	echo "with a mirror PIP_INDEX_URL. Then say make $(MAKECMDGOALS) again." >&2; \
	exit 1; }
endef

$(BIN)/python:
	$(call make-environment,$(VENV))

# The package's version stands in sslinfo/__init__.py.
$(VENV)/.installed: $(BIN)/python pyproject.toml sslinfo/__init__.py
	@test -e $@ || echo "Installing torch, lightning and what they need into $(VENV): a few minutes and up to 7 GB, once."
	$(call install,$(VENV),-e .)
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@test -e $@ || echo "Installing the tools of the tests into $(VENV): a minute, once."
	$(call install,$(VENV),-e '.[test]')
	@touch $@

# Made anew where a bound has moved. pip's constraints are the bounds of pyproject.toml with == for >=.
$(LOWEST)/.installed: pyproject.toml
	@echo "Installing torch, lightning and so on at their lower bounds into $(LOWEST): a few minutes and up to 7 GB."
	@rm -rf $(LOWEST)
	$(call make-environment,$(LOWEST))
	@sed -nE 's/^ +"([A-Za-z0-9-]+)(\[.*\])?>=([0-9.]+).*/\1==\3/p' pyproject.toml > $(LOWEST)/constraints.txt
	$(call install,$(LOWEST),-c $(LOWEST)/constraints.txt -e '.[test]')
	@touch $@
