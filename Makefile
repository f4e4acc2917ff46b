PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-faults check lint docs benchmark clean

demo: .venv/installed          ## Nine cells at demo size, from nothing to the result table
	$(BIN)/python run_tune.py grid tune_configs/demo.yaml

test: .venv/installed-test     ## The whole test suite
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-faults: .venv/installed-test  ## The slow tests: runs that are killed, files that are torn, PostgreSQL, Prometheus, a browser
	$(BIN)/python -m pytest -m slow

lint: .venv/installed-test     ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed-docs      ## The documentation as pages in site/, warnings as errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: lint test               ## Everything that must pass before a commit

benchmark: .venv/installed     ## Speed of simulator, worlds and algorithms, one thread
	$(BIN)/python benchmarks/simulator.py
	$(BIN)/python benchmarks/algorithms.py

clean:                         ## Removes the virtual environment; runs and datasets stay
	rm -rf .venv

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

.venv/installed-docs: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@
