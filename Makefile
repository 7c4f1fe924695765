# make demo | test | lint | space | bench : each creates .venv if it is missing. Needs Python 3.11 or later.
PYTHON ?= python3
VENV := .venv

.PHONY: demo test lint space bench

demo: $(VENV)/runtime
	$(VENV)/bin/python sample/demo.py

test: lint
	$(VENV)/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile

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
$(VENV)/runtime: requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/space: space/requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet -r space/requirements.txt
	touch $@

$(VENV)/development: requirements-dev.txt requirements.txt space/requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet -r requirements-dev.txt
	touch $@
