# The ways to work on imgcache. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup setup-run demo test test-long check lint format bench binary man clean

BIN := .venv/bin
# Test processes at work at once: one more than the smallest machine has processors, since many tests wait.
WORKERS ?= 3
export WORKERS

help:  ## list what can be made
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1\t\2/p' Makefile | expand -t 12

setup:  ## make the environments and install what the tests need (as root; else says what is missing)
	@tools/setup.sh test

setup-run:
	@tools/setup.sh run

demo: setup-run  ## show the main job on three hosts that exist only for the demo; needs no root
	@$(BIN)/python demo/run.py

test: setup binary check  ## check everything and run the tests
	@tools/run_tests.sh

test-long: setup binary check  ## the same with the slow tests
	@tools/run_tests.sh -m "long or not long"

check: lint  ## lint, types and floors
	@$(BIN)/mypy
	@$(BIN)/lint-imports

lint: setup-run  ## ruff: rules and format
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

format: setup-run  ## let ruff repair and format
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: setup  ## print the ratios of docs/performance.md for this machine
	@tools/setup.sh bench
	@for script in bench/bench_*.py; do $(BIN)/python "$$script"; done

binary: setup-run  ## build dist/imgcache, one file that needs no Python
	@tools/make_binary.sh

man: setup-run  ## write the man page and the JSON schemas from the program itself
	@$(BIN)/python tools/make_man.py
	@$(BIN)/python tools/make_schemas.py

clean:  ## remove all that was made here, the environments too
	rm -rf .venv .venv-openstack .demo build dist .mypy_cache .ruff_cache .import_linter_cache .hypothesis
