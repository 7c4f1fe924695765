# make demo | test | quick | lint | space | bench : each creates .venv if it is missing. Needs Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
PYTEST := $(VENV)/bin/python -m pytest -n logical --maxprocesses 4

.PHONY: demo test quick lint space bench

demo: $(VENV)/runtime
	$(VENV)/bin/python sample/demo.py

test: lint
	$(PYTEST) --dist loadfile

# About two minutes on two cores: no script, no process, no whole training. One thread per test process is faster than two.
quick: lint
	OMP_NUM_THREADS=1 $(PYTEST) --dist worksteal -m "not (script or slow or realdata or browser)"

space: $(VENV)/space
	$(VENV)/bin/python space/app.py

bench: $(VENV)/runtime
	$(VENV)/bin/python -m benchmarks

lint: $(VENV)/development
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# Stamp files: requirements are installed again only after they change.
$(VENV)/runtime: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install -r requirements.txt
	touch $@

$(VENV)/space: space/requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install -r space/requirements.txt
	touch $@

$(VENV)/development: requirements-dev.txt pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install -r requirements-dev.txt
	touch $@
