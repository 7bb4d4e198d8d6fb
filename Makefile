# Every target sets up what it needs in .venv, with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(shell find csrc tests/cuda_emulation -name '*.h' -o -name '*.cpp' -o -name '*.inl' -o -name '*.cu')
BUILD := constraints.txt pyproject.toml setup.py CMakeLists.txt tests/cuda_emulation/CMakeLists.txt $(NATIVE)
NATIVE_TESTS := $(shell find tests/native tests/fuzz -name '*.cpp')
TRITON := 3.6.0
NEWER_TRITON := 3.9.0
ifeq ($(shell uname -s),Linux)
TRITON_DONE := $(VENV)/triton-$(TRITON).done build/triton-$(NEWER_TRITON)/triton/__init__.py
endif
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# An isolated build must never resolve torch, nor the tests reach for a model hub.
export HF_HUB_OFFLINE := 1

.PHONY: demo test torture lint format fuzz sanitize gpu bench bench-peers compatibility clean

demo: $(VENV)/demo.done
	$(BIN)/warpmerge demo

test: $(VENV)/test.done
	$(BIN)/python -m pytest

# Merges that fail, are killed, lose their power or are interrupted: tens of thousands, in half an hour. TORTURE: options
# and parts, as `python -m torture --help` in the folder tests lists them, such as TORTURE="--seed 7 power".
torture: $(VENV)/test.done
	cd tests && ../$(BIN)/python -m torture $(TORTURE)

# mypy reads the annotations of numpy and torch, so it runs where the tests do.
lint: $(VENV)/test.done $(VENV)/lint.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(NATIVE) $(NATIVE_TESTS)

format: $(VENV)/lint.done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE) $(NATIVE_TESTS)

# Hostile files: inputs from seeds, the same ones each time, in a quarter of an hour; then inputs that coverage guides, with
# atheris, and with libFuzzer where there is clang.
INPUTS ?= 1000000
fuzz: $(VENV)/fuzz.done
	$(BIN)/python tests/fuzz/run.py --inputs $(INPUTS)
	$(BIN)/python tests/fuzz/guided.py --inputs $$(($(INPUTS) / 10))
	$(BIN)/python tests/fuzz/native.py --runs $$(($(INPUTS) * 10))

# Native code under the address, undefined-behaviour and thread sanitizers, in builds of its own.
sanitize: $(VENV)/sanitize.done
	$(BIN)/python tests/sanitizers/run.py

# On a machine with a GPU, without a package index: builds, runs the GPU tests and measures, all within eight minutes with
# the packages that the machine's own Python has.
GPU_PYTHON ?= python3
gpu:
	$(GPU_PYTHON) -m benchmarks.gpu

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

# The same tensors through mergekit and PEFT, in that environment: writes docs/compatibility.md, in two minutes.
compatibility: $(VENV)/test.done
	$(BIN)/python -m benchmarks.compatibility

clean:
	rm -rf build $(VENV) python/warpmerge/*.so

$(VENV)/venv.done:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "warpmerge needs Python 3.10 or newer: make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	touch $@

# The native modules are rebuilt when their sources change: that takes seconds, the build directory is kept. The CUDA
# kernels, if there is nvcc, are compiled for two architectures only (with PTX for newer ones), which is quicker; the
# demo does without them, unless the tests have had them built.
$(VENV)/demo.done $(VENV)/test.done: export CUDAARCHS := $(or $(CUDAARCHS),80-real;90)
$(VENV)/demo.done: export WARPMERGE_CUDA := $(or $(WARPMERGE_CUDA),$(if $(wildcard $(VENV)/test.done),auto,off))

$(VENV)/demo.done: $(VENV)/venv.done $(BUILD)
	$(BIN)/python -m pip install -q -e '.[demo]'
	touch $@

$(VENV)/test.done: export CMAKE_ARGS := $(CMAKE_ARGS) -DWARPMERGE_CUDA_EMULATION=ON
$(VENV)/test.done: $(VENV)/venv.done $(TRITON_DONE) $(BUILD)
	$(BIN)/python -m pip install -q -e '.[test]'
	touch $@

# Two versions of Triton, where it is available: one in the environment, one beside it. Without their dependencies, and
# not among the constraints: a torch built for CUDA brings the version that it needs.
$(VENV)/triton-$(TRITON).done: $(VENV)/venv.done
	env -u PIP_CONSTRAINT $(BIN)/python -m pip install -q --no-deps triton==$(TRITON)
	touch $@

build/triton-$(NEWER_TRITON)/triton/__init__.py: | $(VENV)/venv.done
	rm -rf build/triton-$(NEWER_TRITON)
	env -u PIP_CONSTRAINT $(BIN)/python -m pip install -q --no-deps --target build/triton-$(NEWER_TRITON) triton==$(NEWER_TRITON)

$(VENV)/fuzz.done: $(VENV)/test.done
	$(BIN)/python -m pip install -q -e '.[fuzz]'
	touch $@

$(VENV)/sanitize.done: $(VENV)/test.done
	$(BIN)/python -m pip install -q cmake ninja pybind11
	touch $@

$(VENV)/lint.done: $(VENV)/venv.done constraints.txt
	$(BIN)/python -m pip install -q ruff clang-format mypy types-PyYAML
	touch $@
