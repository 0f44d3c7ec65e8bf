# Every target sets up VENV by itself. Another interpreter: make test PYTHON=python3.13 VENV=.venv-3.13
PYTHON ?= python3
VENV ?= .venv
# a pip constraints file, such as .ci/oldest.txt
CONSTRAINTS ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# uv installs in seconds what takes pip a minute
install = $(PYTHON) -m venv $(1) && $(1)/bin/python -m pip install --quiet --disable-pip-version-check uv && $(1)/bin/uv pip install --quiet --python $(1)/bin/python $(2)

.PHONY: help demo test docs packages attack lint bench clean

help:
	@echo "make demo       train a CNN on digits, track its kernels, write runs/demo/report.html"
	@echo "make test       run the test suite"
	@echo "make docs       build the pages of docs/ and the reference as a site in site/, and check its links"
	@echo "make packages   run the models of other people's packages, see docs/models.md"
	@echo "make attack     kill, fault and damage trainings and kernel stores at random, 20 minutes"
	@echo "make lint       check style and types"
	@echo "make bench      run the benchmarks, half an hour, and write benchmarks/results.md"
	@echo "make clean      remove $(VENV), the other environments, runs and caches"

$(READY): pyproject.toml
	@$(PYTHON) -c "import sys; v = sys.version_info; sys.exit(f'nngp-plugins needs Python 3.11 or newer, $(PYTHON) is {v[0]}.{v[1]}; run: make PYTHON=python3.12' if v < (3, 11) else 0)"
	$(call install,$(VENV),$(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable '.[dev]')
	@touch $@

demo: $(READY)
	rm -rf runs/demo
	$(BIN)/nngp-zoo track linen/cnn --data digits --steps 500 --run runs/demo

test: $(READY)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

.venv-docs/.ready: docs/requirements.txt
	$(call install,.venv-docs,--requirement $<)
	@touch $@

# the reference is read from the source, so that nothing of the project is installed
docs: .venv-docs/.ready
	.venv-docs/bin/zensical build --strict --clean --config-file mkdocs.yml

# with the versions of the requirements, and nothing that these ask for and the models do not need
.venv-packages/.ready: tests/adapters/models/packages/requirements.txt
	$(call install,.venv-packages,--no-deps --requirement $<)
	@touch $@

# their warnings are not ours
packages: .venv-packages/.ready
	NNGP_MODELS=packages .venv-packages/bin/python -m pytest tests/adapters/test_conformance.py -W ignore --numprocesses auto --dist loadgroup

# 1,000 attacks take about 20 minutes; mounts and strace need root
ATTACKS ?= 1000
attack: $(READY)
	PYTHONPATH=tests $(BIN)/python -W ignore -m attack --count $(ATTACKS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/harness.py

clean:
	rm -rf $(VENV) .venv-peer .venv-packages .venv-docs site runs .cache .pytest_cache .mypy_cache .ruff_cache
