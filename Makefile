# Everything happens in .venv and build/; a second run does only what has changed since the first.
# PYTHON picks the interpreter of a new .venv; ARGS is handed on, as in `make test ARGS="-k clip"`.

PYTHON ?= python3
ARGS ?=
SUITES ?= benchmarks.losses benchmarks.search benchmarks.mining benchmarks.grad_cache \
	benchmarks.queue benchmarks.ranks
VENV := .venv
BIN := $(VENV)/bin

# Only where torch brought no Triton of its own: its CPU builds. Tests interpret and compile with it.
TRITON := triton==3.9.0

PYTEST := $(BIN)/python -m pytest --numprocesses=auto --dist=worksteal
INSTALLED := $(VENV)/.installed
NATIVE := cl_kernels/_cpu.so
CSRC := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.inl' -o -name '*.cuh' -o -name '*.cu' 2>/dev/null)

.DELETE_ON_ERROR:
.PHONY: help build demo sbert moco methods clip test soak lint format bench kernels gpu-check gpu-rehearsal compat precompile clean distclean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22

$(INSTALLED): constraints.txt pyproject.toml
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt torch setuptools cmake ninja
	$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/python -m pip install --no-deps $(TRITON)
	CL_KERNELS_PURE_PYTHON=1 $(BIN)/python -m pip install -c constraints.txt \
		--no-build-isolation -e '.[dev,examples,text,bench]'
	@touch $@

$(NATIVE): $(INSTALLED) setup.py CMakeLists.txt $(CSRC)
	$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

build: $(NATIVE)  ## virtual environment and compiled libraries

demo: build  ## train SimCLR on handwritten digits and print the report
	$(BIN)/python -m examples.simclr $(ARGS)

sbert: build  ## train a text encoder to find code by its description, in stages
	$(BIN)/python -m examples.sbert train $(ARGS)

moco: build  ## train MoCo v2 on handwritten digits and print the report
	$(BIN)/python -m examples.moco $(ARGS)

methods: build  ## a table of eight self-supervised methods at equal steps
	$(BIN)/python -m examples.methods $(ARGS)

clip: build  ## train CLIP on drawn characters and their names and print the report
	$(BIN)/python -m examples.clip train $(ARGS)

test: build  ## run the test suite; the GPU kernels under Triton's interpreter
	$(PYTEST) --ignore=python_tests/triton $(ARGS)
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(PYTEST) python_tests/triton $(ARGS) \
		|| test $$? -eq 5 -a -n "$(ARGS)"  # 5: ARGS select none of these

soak: build  ## kill training at random moments, resume it, compare the weights bit by bit
	$(BIN)/python -m tools.soak $(ARGS)

lint: $(INSTALLED)  ## ruff, pyright and clang-format, changing nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(if $(CSRC),$(BIN)/clang-format --dry-run -Werror $(CSRC))

format: $(INSTALLED)  ## rewrite the sources as lint wants them
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format
	$(if $(CSRC),$(BIN)/clang-format -i $(CSRC))

bench: build  ## all benchmarks; ARGS=--quick for subsets of a few minutes
	$(foreach suite,$(SUITES),$(BIN)/python -m $(suite) $(ARGS) &&) true

kernels: build  ## compile every GPU kernel and print its registers, spills and shared memory
	$(BIN)/python -m tools.kernels $(ARGS)

gpu-rehearsal: build  ## go through gpu-check without a GPU, with Triton's real cache keys
	$(BIN)/python -m tools.rehearsal $(ARGS)

compat: build  ## run the tests that meet torch's interfaces with the oldest and the newest torch
	$(BIN)/python -m tools.compat $(ARGS)

precompile: build  ## compile for a GPU machine what gpu-check will run there, into build/gpu
	$(BIN)/python -m tools.precompile $(ARGS)

# No .venv is made for it: a GPU machine may have no network. Its own python3 serves as well.
gpu-check:  ## prove and time every kernel on this machine's GPU, in five and a half minutes
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.gpu $(ARGS)

clean:  ## remove what was built, keep .venv
	rm -rf build dist *.egg-info cl_kernels/*.so .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## remove .venv as well
	rm -rf $(VENV)
