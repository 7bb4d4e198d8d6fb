# Every target sets up what it needs in .venv, with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.inl')
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# An isolated build must never resolve torch, nor the tests reach for a model hub.
export HF_HUB_OFFLINE := 1

.PHONY: demo test lint format bench bench-peers clean

demo: $(VENV)/demo.done
	$(BIN)/warpmerge demo

test: $(VENV)/test.done
	$(BIN)/python -m pytest

lint: $(VENV)/lint.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(SOURCES)

format: $(VENV)/lint.done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

# About ten minutes and 10 GB under build/bench: end to end, kernels, start-up, memory, into benchmarks/results/.
bench: $(VENV)/test.done
	mkdir -p build/bench
	rm -f build/bench/bench.json
	$(BIN)/python -m pytest benchmarks --ignore=benchmarks/bench_peers.py -q --benchmark-json=build/bench/bench.json
	$(BIN)/python -m benchmarks.results collect build/bench/bench.json

# mergekit on the same files, in an environment of its own: another fifteen minutes.
bench-peers: $(VENV)/test.done
	$(BIN)/python -m benchmarks.peers install
	mkdir -p build/bench
	rm -f build/bench/peers.json
	$(BIN)/python -m pytest benchmarks/bench_peers.py -q --benchmark-json=build/bench/peers.json
	$(BIN)/python -m benchmarks.results collect build/bench/peers.json

clean:
	rm -rf build $(VENV) python/warpmerge/*.so

$(VENV)/venv.done:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "warpmerge needs Python 3.10 or newer: make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	touch $@

# The native module is rebuilt when its sources change: that takes seconds, the build directory is kept.
$(VENV)/demo.done: $(VENV)/venv.done constraints.txt pyproject.toml setup.py CMakeLists.txt $(SOURCES)
	$(BIN)/python -m pip install -q -e '.[demo]'
	touch $@

$(VENV)/test.done: $(VENV)/venv.done constraints.txt pyproject.toml setup.py CMakeLists.txt $(SOURCES)
	$(BIN)/python -m pip install -q -e '.[test]'
	touch $@

$(VENV)/lint.done: $(VENV)/venv.done constraints.txt
	$(BIN)/python -m pip install -q ruff clang-format
	touch $@
