# The commands for people. Every target does all of its own set-up, and stamp files make a second
# run quick.
#
# The module, the tests and clippy all build Rust in the release profile, with the same PYO3_*
# variables. So the dependencies are compiled only once.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := build

PYTHON3 ?= python3
VENV := .venv
PYTHON := $(VENV)/bin/python
AZURITE := tests/azurite

export PYO3_PYTHON := $(abspath $(PYTHON))
export PYO3_BUILD_EXTENSION_MODULE := 1
# Cargo and maturin must build in the same directory, also if the caller has set one.
export CARGO_TARGET_DIR ?= $(abspath target)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The extension module is built without libpython and cannot be linked into a test program. Its
# tests are in Python.
CARGO_TEST_FLAGS := --workspace --exclude vmsnapshot-native --release --locked
# For the command line: make test PYTEST_FLAGS="-k rescue"
PYTEST_FLAGS ?=
# For the command line: make mutants MUTANTS_FLAGS="-p vmsnapshot-window -F freezers.rs"
MUTANTS_FLAGS ?=
# For the command line: make bench BENCH_FLAGS="--quick --json bench.json"
BENCH_FLAGS ?=

RUST_SOURCES := Cargo.toml Cargo.lock $(shell find rust -name '*.rs' -o -name Cargo.toml)
PACKAGES_STAMP := $(VENV)/.python-packages
BUILD_STAMP := $(VENV)/.build
AZURITE_STAMP := $(AZURITE)/node_modules/.installed
MUTANTS_STAMP := target/mutants/.installed-27.1.0
AGENT_STAMP := .work/waagent/.unpacked
VERSION := $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' Cargo.toml)
EXTENSION := dist/VMSnapshotLinux-$(VERSION).zip
EXTENSION_SOURCES := LICENSE Cargo.toml $(shell find handler python -name __pycache__ -prune -o -type f ! -name '*.so' -print)

.PHONY: help build extension release demo test check restores bench mutants mutants-handler clean system-packages-build system-packages-test

build: $(BUILD_STAMP) ## build the command .venv/bin/vmsnapshot (the default)

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

extension: $(EXTENSION) ## build the extension package for Azure, in dist/

release: $(PACKAGES_STAMP) $(EXTENSION_SOURCES) ## build wheel and extension package for every system with glibc 2.17, in dist/
	$(PYTHON) -m pip install --quiet --requirement handler/requirements-release.txt
	rm -f dist/vmsnapshot-*.whl
	PATH="$(abspath $(VENV))/bin:$$PATH" maturin build --release --locked --quiet --out dist \
		--zig --compatibility manylinux2014 --target $(shell uname -m)-unknown-linux-gnu
	$(PYTHON) handler/build.py --wheels $(VENV)/extension-wheels --own-wheel dist/vmsnapshot-*.whl --output $(EXTENSION)

demo: build extension system-packages-test $(AZURITE_STAMP) ## show a run on filesystems and a blob service of its own (root)
	@$(PYTHON) -m tests.demo

test: build extension system-packages-test $(AZURITE_STAMP) $(AGENT_STAMP) ## run all tests (root)
	cargo test $(CARGO_TEST_FLAGS)
	$(PYTHON) -m pytest $(PYTEST_FLAGS)

check: $(PACKAGES_STAMP) ## check formatting, lints, types, imports and the documents
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --release --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --release --locked --quiet
	$(PYTHON) .ci/rust-circles
	$(PYTHON) -m ruff check python handler tests .ci/rust-circles
	$(PYTHON) -m ruff format --check python handler tests .ci/rust-circles
	$(PYTHON) -m mypy
	if [ -e $(VENV)/bin/lint-imports ]; then PYTHONPATH=python $(VENV)/bin/lint-imports --no-cache --no-logo; \
		else echo "imports are not checked: import-linter needs Python 3.10"; fi
	sh -n handler/bin/handler
	PYTHONPATH=python $(PYTHON) -m pytest --quiet tests/documents tests/test_readme.py

restores: build system-packages-test ## restore databases from 500 snapshots of them, taken under load (root)
	VMSNAPSHOT_RESTORES=500 $(PYTHON) -m pytest tests/quiesce/test_restore.py -k restored

bench: build extension system-packages-test $(AZURITE_STAMP) ## run the benchmarks, with their baselines (root)
	cargo build $(CARGO_TEST_FLAGS) --example floor
	$(PYTHON) -m tests.bench $(BENCH_FLAGS)

# In a copy, and as root without capabilities: no mutant can freeze, thaw or take a real-time priority.
mutants: $(MUTANTS_STAMP) ## change the Rust rules one by one, and list what no test of a crate notices
	rm -rf target/mutants/source
	mkdir -p target/mutants/source
	cp -r .cargo Cargo.toml Cargo.lock rust target/mutants/source
	cd target/mutants/source && export CARGO_TARGET_DIR=$(abspath target/mutants/build) && \
		nice $(if $(filter 0,$(shell id -u)),setpriv --bounding-set=-all --inh-caps=-all) \
		$(abspath target/mutants/bin/cargo-mutants) mutants --in-place --output .. $(MUTANTS_FLAGS)

# In a copy whose package lies in `src`, because mutmut takes the names of modules from there.
mutants-handler: $(BUILD_STAMP) ## change the handler's rules one by one, and list what no test of them notices
	rm -rf target/mutants/handler
	mkdir -p target/mutants/handler/tests target/mutants/handler/tmp
	$(PYTHON) -m pip install --quiet --upgrade --target target/mutants/mutmut --no-deps --requirement requirements-mutants.txt
	cp -r python target/mutants/handler/src
	cp -r tests/__init__.py tests/conftest.py tests/handler tests/support target/mutants/handler/tests
	cp pyproject.toml Cargo.toml target/mutants/handler
	cp tests/handler/mutmut.cfg target/mutants/handler/setup.cfg
	cd target/mutants/handler && export PYTHONPATH=$(abspath target/mutants/mutmut) PYTEST_DEBUG_TEMPROOT=$(abspath target/mutants/handler/tmp) && \
		nice $(abspath $(PYTHON)) -m mutmut run --max-children 2 $(MUTANTS_FLAGS) && \
		$(abspath $(PYTHON)) -m mutmut results | sed "/: not checked/d"

clean: ## remove everything that was built or installed in this directory
	rm -rf $(VENV) target dist .work/waagent $(AZURITE)/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find python handler tests -name __pycache__ -prune -exec rm -rf {} +
	rm -f python/vmsnapshot/*.so

system-packages-build:
	@.ci/system-packages build

system-packages-test:
	@.ci/system-packages test

$(PYTHON): | system-packages-build
	$(PYTHON3) -m venv $(VENV)

$(PACKAGES_STAMP): requirements-dev.txt | $(PYTHON)
	$(PYTHON) -m pip install --quiet --requirement requirements-dev.txt
	touch $@

$(BUILD_STAMP): $(PACKAGES_STAMP) pyproject.toml $(RUST_SOURCES)
	VIRTUAL_ENV=$(abspath $(VENV)) $(VENV)/bin/maturin develop --release --locked --quiet
	touch $@

$(EXTENSION): $(BUILD_STAMP) $(EXTENSION_SOURCES)
	$(PYTHON) handler/build.py --wheels $(VENV)/extension-wheels --output $@

$(AZURITE_STAMP): $(AZURITE)/package.json $(AZURITE)/package-lock.json | system-packages-test
	npm --prefix $(AZURITE) ci --ignore-scripts --no-fund --no-audit --loglevel=error
	touch $@

# The version is pinned here, because cargo pins no tools.
$(MUTANTS_STAMP):
	CARGO_TARGET_DIR=$(abspath target/mutants/build-of-cargo-mutants) \
		cargo install cargo-mutants --version 27.1.0 --locked --quiet --root target/mutants
	rm -rf target/mutants/build-of-cargo-mutants
	touch $@

# The code of the Azure Linux agent, which the tests run. It is unpacked, not installed.
$(AGENT_STAMP): tests/agent/fetch | system-packages-test
	tests/agent/fetch
