# `make demo` and `make test` install everything they need on a machine with Python 3.11 and make.
# tools/install.sh describes what is fetched; docs/install.md lists sizes and other systems.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
READY   = $(VENV)/.ready

.PHONY: demo test slow faults dist docker matrix study gpu-study lint clean
demo: $(READY)
	$(BIN)/mergeforget demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow" tests

slow: $(READY)                  # the slow tests: the real model, and the data in MERGEFORGET_DATA
	$(BIN)/python -m pytest -q -m slow tests

faults: $(READY)                # interrupt every writer, damage every input, print the table
	$(BIN)/python -m mergeforget.testing.faults

dist: $(READY)                  # build the wheel and the sdist, and try each in a new environment
	$(BIN)/python tools/dist.py

docker:                         # build the image (make docker BUILD=cuda) and run the demo in it
	docker build -t mergeforget --build-arg BUILD=$(or $(BUILD),cpu) .
	docker run --rm mergeforget demo --people 2 --quick

matrix: $(READY)                # the fast tests on each Python found: make matrix SUBSET=smoke
	$(BIN)/python tools/matrix.py $(MATRIX)

# Repeat the published experiments (about three hours); rerun the command to resume. The data sets
# are read from MERGEFORGET_DATA. `make study PART=pair` runs one part and the parts it depends on,
# `make study STUDY=cpu64 PART=seeds MINUTES=120` two hours of the main table with 64 rows and three seeds.
STUDY   = cpu
RESULTS = docs/$(if $(filter cpu,$(STUDY)),study,study-$(STUDY))
study: $(READY)
	$(BIN)/python -m benchmarks.study run $(STUDY) --jobs 2 --results $(RESULTS) \
	  $(if $(PART),--only $(PART)) $(if $(MINUTES),--minutes $(MINUTES))
	$(BIN)/python -m benchmarks.study write $(RESULTS)

gpu-study: $(READY)             # the complete LUME train split on one GPU, in parts of minutes
	$(BIN)/python -m benchmarks.study run gpu --jobs 4 --results docs/gpu-study $(if $(PART),--only $(PART))
	$(BIN)/python -m benchmarks.study write docs/gpu-study

lint: $(READY)
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

$(READY): pyproject.toml constraints.txt tools/install.sh
	PYTHON=$(PYTHON) sh tools/install.sh $(VENV)
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
