# Everything happens in .venv; `make install` makes it, the other targets call it when needed.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: help install demo test lint format zoo results bench readme clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

install: $(STAMP)  ## make .venv with secateur and everything for its development

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	touch $(STAMP)

demo: $(STAMP)  ## prune a trained ResNet-20 to half its MACs; report in out/demo/report.html
	$(BIN)/secateur prune --config examples/demo.yaml --restart
	@echo 'Now open out/demo/report.html'

test: $(STAMP)  ## run the tests on two processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## rewrite the sources in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

zoo: $(STAMP)  ## trace and prune every model of the coverage sets; table in docs/coverage.md
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[zoo]'
	$(BIN)/python -m benchmarks.coverage

results: $(STAMP)  ## prune every network of the zoo several ways; tables in docs/results.md
	$(BIN)/python -m benchmarks.results

bench: $(STAMP)  ## side by side with Torch-Pruning; tables in docs/benchmarks.md
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[bench,zoo]'
	$(BIN)/python -m benchmarks.peer_structural

readme: $(STAMP)  ## write the generated parts of README.md
	$(BIN)/python docs/generate.py

clean:  ## remove what the other targets made, but not .venv
	rm -rf out runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
