# One command each: `make demo`, `make test`. They make .venv and install what they need.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PROTOS := $(shell find proto -name '*.proto')
PROTO_OUT := p2pnode/wire/pb

.PHONY: help setup demo test test-here test-peers test-carriers test-processes unit unit-core unit-node unit-host check
.PHONY: soak soak-here soak-fleets proto proto-check lock interop programs swarm-tools clean

help:
	@echo "make demo    34 sidecars on this machine, one council opportunity, told step by step"
	@echo "make test    the whole test suite"
	@echo "make unit    the fast part of it, under a minute"
	@echo "make check   ruff, mypy --strict, import-linter, generated code up to date"
	@echo "make soak    long runs"
	@echo "make proto   generate p2pnode/wire/pb from proto/"
	@echo "make lock    pin the dependencies anew"

setup: $(READY)

# uv installs the locked set in seconds; --compile-bytecode halves the first start of libp2p.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements-uv.lock
	$(BIN)/uv pip install --quiet --compile-bytecode --require-hashes --python $(BIN)/python --requirement requirements.lock
	$(BIN)/uv pip install --quiet --compile-bytecode --no-deps --no-build-isolation --python $(BIN)/python --editable .
	@touch $(READY)

demo: $(READY)
	$(BIN)/p2pnode demo

# In parts side by side too, with a fifth of each property's examples, and without what `make test` has more time for.
UNIT := PROPERTY_SHARE=0.2 $(BIN)/python -m pytest -m "not soak and not slow" -q
unit: $(READY) programs
	$(MAKE) --no-print-directory -j3 --output-sync=target unit-core unit-node unit-host

unit-core: $(READY)
	$(UNIT) tests/core tests/wire tests/config tests/store tests/local

unit-node: $(READY)
	$(UNIT) tests/node tests/cli

unit-host: $(READY)
	$(UNIT) tests/host tests/api

# In parts side by side: the first mostly computes, the others mostly wait for peers and processes.
PEERS := tests/client tests/discovery tests/faults tests/interop tests/swarm
CARRIERS := tests/carriers
APART := $(addprefix tests/e2e/test_,councils.py council_owners.py bridge.py two_fleets.py roads.py versions.py sources.py load.py)
# Of each property's examples; `make test SHARE=1` tries all of them.
SHARE := 0.25
test: $(READY) programs interop
	$(MAKE) --no-print-directory -j4 --output-sync=target test-here test-peers test-carriers test-processes

test-here: $(READY)
	PROPERTY_SHARE=$(SHARE) $(BIN)/python -m pytest tests $(PEERS:%=--ignore %) $(CARRIERS:%=--ignore %) --ignore tests/e2e -m "not soak"

test-peers: $(READY)
	$(BIN)/python -m pytest $(PEERS) -m "not soak"

test-carriers: $(READY)
	$(BIN)/python -m pytest $(CARRIERS) $(APART) -m "not soak"

test-processes: $(READY)
	$(BIN)/python -m pytest tests/e2e $(APART:%=--ignore %) -m "not soak"

# Fleets mostly wait too; simulations compute.
soak: $(READY) programs swarm-tools interop
	$(MAKE) --no-print-directory -j2 --output-sync=target soak-here soak-fleets

soak-here: $(READY)
	$(BIN)/python -m pytest tests --ignore tests/e2e --ignore tests/swarm -m soak

soak-fleets: $(READY)
	$(BIN)/python -m pytest tests/e2e tests/swarm -m soak

programs: $(READY)
	$(BIN)/python -m tests.programs

swarm-tools: $(READY)
	$(BIN)/python -m tests.swarm.install

check: $(READY) proto-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

interop: $(READY)
	$(BIN)/python -m tests.interop.peers install

proto: $(READY)
	find $(PROTO_OUT) -name '*_pb2.py' -delete -o -name '*_pb2.pyi' -delete
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I proto --python_out=$(PROTO_OUT) --mypy_out=$(PROTO_OUT) $(PROTOS)

# Generates into a scratch directory and compares: what is committed must be what proto/ says.
proto-check: $(READY)
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && \
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I proto --python_out="$$out" --mypy_out="$$out" $(PROTOS) && \
	for f in $$(cd "$$out" && find . -type f); do \
	  cmp -s "$$out/$$f" "$(PROTO_OUT)/$$f" || { echo "$(PROTO_OUT)/$$f is stale: run 'make proto' and commit it"; exit 1; }; \
	done

lock: $(READY)
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --extra dev pyproject.toml --output-file requirements.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url requirements-uv.in --output-file requirements-uv.lock

clean:
	rm -rf $(VENV) .interop .mypy_cache .ruff_cache .pytest_cache
