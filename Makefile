# What a newcomer needs: `make demo` shows it, `make test` checks it. Everything runs in .venv, which is made on first use.

PYTHON ?= python3
PYTEST_WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_BIN := .venv-bench/bin
BENCH_STAMP := .venv-bench/.installed
BENCHMARKS := $(filter-out benchmarks/readme_tables.py benchmarks/claim_tables.py benchmarks/tables.py benchmarks/harness.py \
	benchmarks/claims/common.py, \
	$(wildcard benchmarks/*.py benchmarks/claims/*.py))
CHECKED := regraft tests benchmarks docs $(wildcard examples)
PROSE := regraft regraft_recipes benchmarks docs README.md CHANGELOG.md CONTRIBUTING.md

.PHONY: venv demo test test-all inventory bench-env bench lint audit-deps docs clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "regraft needs Python 3.11 or newer, got $$($(PYTHON) --version); choose one with make PYTHON=..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/regraft demo

test: $(STAMP)
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile

test-all: $(STAMP)
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile -m ""

# Which passing test shows which feature, as docs/inventory.md; fails where a feature has none.
inventory: $(STAMP)
	$(BIN)/python -m pytest -q -n $(PYTEST_WORKERS) --dist loadfile -m 'inventory and not gpu' --inventory docs/inventory.md

# The peers live in an environment of their own, with the same versions of everything that both use.
bench-env: $(BENCH_STAMP)

$(BENCH_STAMP): pyproject.toml constraints.txt benchmarks/requirements.txt
	test -x $(BENCH_BIN)/python || $(PYTHON) -m venv .venv-bench
	$(BENCH_BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[demo,dev]' --requirement benchmarks/requirements.txt
	$(BENCH_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps fastai==2.8.12
	@touch $(BENCH_STAMP)

bench: $(STAMP) $(BENCH_STAMP)
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(BENCH_BIN)/python $$script; done
	$(BIN)/python benchmarks/readme_tables.py

lint: $(STAMP)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/codespell $(PROSE)
	$(BIN)/pyright

# What others know against our code and the versions we pin; needs the network, so it is no part of `make test`.
audit-deps: constraints.txt
	test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/python -m pip install --quiet bandit pip-audit; }
	.venv-audit/bin/bandit --quiet --configfile pyproject.toml --recursive regraft regraft_recipes -ll
	.venv-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

docs: $(STAMP)
	$(BIN)/python docs/build_reference.py
	$(BIN)/python docs/build_lab.py
	$(BIN)/python benchmarks/readme_tables.py

clean:
	rm -rf $(VENV) .venv-bench .venv-audit .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
