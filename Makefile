# Everything runs from .venv; `make venv` builds it, and the targets that need it ask for it.

.DEFAULT_GOAL := help
.PHONY: help venv client server demo test fuzz lint docs pictures wheel bench-low bench-batch bench-grid bench-pbs bench-monolithic bench-client bench-sharing bench-profile bench-ckks bench-contrast bench-estimate bench-bytes bench-architecture bench-quality bench-faults bench-security lock clean pack-data train-gpu bench-many
.DELETE_ON_ERROR:

SHELL := /bin/sh
VENV := .venv
PYTHON := $(VENV)/bin/python
ARGS ?=
# Of train-gpu: seconds of one piece, and where it computes.
PIECE ?= 570
DEVICE ?= --gpu --threads 4

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Sets $$python to a Python 3.11, or stops and says what is missing. A python3.11 that is only a
# version manager's stub, with nothing behind it, is passed over.
FIND_PYTHON = python=; \
	for candidate in python3.11 python3; do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; \
	    then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "nst-batch needs Python 3.11 (concrete-ml 1.9.0 is pinned to it here);" \
	         "found: $$(python3 --version 2>/dev/null || echo no python3)." \
	         "Install python3.11 with its venv module and run make again." >&2; \
	    exit 1; \
	fi

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(VENV)/.installed ## create .venv with the locked packages (about 7 GB, a few minutes)

$(VENV)/.installed: requirements.lock pyproject.toml
	@set -e; \
	if ! $(PYTHON) -m pip --version >/dev/null 2>&1; then \
	    $(FIND_PYTHON); \
	    "$$python" -m venv --clear $(VENV); \
	fi; \
	if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then \
	    echo "$(VENV) holds $$($(PYTHON) --version), not Python 3.11." \
	         "Remove $(VENV) and run make again." >&2; \
	    exit 1; \
	fi
	$(PYTHON) -m pip install -r requirements.lock
	$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

client: .venv-client/.installed ## create .venv-client: what a service's customer needs (0.5 GB)
server: .venv-server/.installed ## create .venv-server: what runs a service's jobs (0.8 GB)

.venv-%/.installed: requirements-%.lock pyproject.toml
	@set -e; $(FIND_PYTHON); "$$python" -m venv --clear .venv-$*
	.venv-$*/bin/python -m pip install --quiet --no-deps -r requirements-$*.lock
	rm -rf build && .venv-$*/bin/python -m pip install --quiet --no-deps . && rm -rf build
	@touch $@
	@du -sh .venv-$*

demo: venv ## stylize the bundled pairs, encrypted, on this machine
	$(VENV)/bin/nst-batch demo

test: venv ## run the tests; ARGS="-m 'not slow'" leaves out the long ones
	$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

fuzz: venv ## lie to the client of a store for some minutes, with new seeds; LIES=20000 for more
	NST_BATCH_FUZZ=$(or $(LIES),10000) $(PYTHON) -m pytest tests/test_hostile_store.py --timeout 3600

lint: venv ## ruff (rules and format) and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: venv ## build the documentation into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict $(ARGS)

pictures: venv ## take the pictures of the pages anew, of a draft job that really runs (5 minutes)
	$(PYTHON) -m docs.pictures $(ARGS)

# What an earlier build has left in build/ would go into the wheel as well.
wheel: venv ## build the package with its weights and examples into dist/
	rm -rf build
	$(PYTHON) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	rm -rf build
	@ls -l dist/*.whl

pack-data: venv ## training pictures and VGG in an archive below 64 MB; ARGS as in docs/training.md
	$(PYTHON) -m nst.training.packing $(ARGS)

# The run's folder has everything: unpack its result.tar elsewhere to go on there.
train-gpu: venv ## ten minutes of training on this machine's GPU, again to go on; PACK=data.tar RUN=folder VGG=name ARGS=...
	mkdir -p $(RUN)/data && tar -xf $(PACK) -C $(RUN)/data
	timeout --signal=INT --kill-after=25 $(PIECE) $(VENV)/bin/nst-batch train \
	    --content-dir $(RUN)/data/content --style-dir $(RUN)/data/style --vgg $(RUN)/data/$(VGG) \
	    --out $(RUN) --save-every 60 $(DEVICE) $(if $(wildcard $(RUN)/checkpoint.ckpt),--resume) \
	    $(ARGS) || test $$? -eq 124
	cd $(RUN) && tar -cf result.tar $$(ls checkpoint.ckpt best.ckpt metrics.jsonl sample.png 2>/dev/null)
	@test $$(wc -c < $(RUN)/result.tar) -le 64000000 || { echo "$(RUN)/result.tar is over 64 MB" >&2; exit 1; }
	@ls -l $(RUN)/result.tar

bench-low: venv ## one encrypted pair at low: time, memory, PSNR, parallel efficiency
	$(PYTHON) -m benchmarks.low $(ARGS)

bench-batch: venv ## a batch at draft: PBS/s against bare circuit calls; ARGS="--quality low --pairs 2"
	$(PYTHON) -m benchmarks.batch $(ARGS)

bench-grid: venv ## 3 contents x 2 styles at draft: each style computed once
	$(PYTHON) -m benchmarks.grid $(ARGS)

bench-faults: venv ## faults injected into jobs at draft; ARGS="--fault NAME" runs single ones
	$(PYTHON) -m benchmarks.faults $(ARGS)

bench-pbs: venv ## cost of a PBS by kept bits and p_error, in operations and time (10 minutes)
	$(PYTHON) -m benchmarks.pbs $(ARGS)

bench-security: venv ## cost of 132 bits and of exact results; how many decrypted levels differ
	$(PYTHON) -m benchmarks.security $(ARGS)

bench-many: venv ## commands on ten thousand pairs: seconds and memory (10 minutes)
	$(PYTHON) -m benchmarks.many $(ARGS)

bench-monolithic: venv ## a stage's row circuits against concrete-ml's monolithic circuit of it
	$(PYTHON) -m benchmarks.monolithic $(ARGS)

bench-client: venv ## seconds of the client's steps at every level; ARGS="--levels draft low"
	$(PYTHON) -m benchmarks.client $(ARGS)

bench-sharing: venv ## workers as threads with one key set against processes: time and memory
	$(PYTHON) -m benchmarks.sharing $(ARGS)

bench-profile: venv ## where the time of a stage and of a job goes; ARGS="--native FILE.svg"
	$(PYTHON) -m benchmarks.profile $(ARGS)

bench-ckks: venv ## the leveled engine: a batch at low, 512 x 512, both engines on one pair (20 minutes)
	$(PYTHON) -m benchmarks.ckks $(ARGS)

bench-contrast: venv ## accumulators that wrap around at a fixed contrast; ARGS names the data
	$(PYTHON) -m benchmarks.contrast $(ARGS)

bench-estimate: venv ## estimates against real runs; measures the rates that ship (5 minutes)
	$(PYTHON) -m benchmarks.estimate $(ARGS)

bench-bytes: venv ## bytes in the store for one pair at each level
	$(PYTHON) -m benchmarks.bytes $(ARGS)

bench-architecture: venv ## short training runs of several architectures; ARGS names the data
	$(PYTHON) -m benchmarks.architecture $(ARGS)

bench-quality: venv ## both engines on held-out pairs and strong styles; ARGS names the data
	$(PYTHON) -m benchmarks.quality $(ARGS)

# Resolves pyproject.toml afresh in a throw-away environment and writes down what came out, without
# pip and without this project. Run it after a change of dependencies, read the diff, run the tests.
# Needs about 7 GB of temporary disk space; TMPDIR says where.
lock: ## resolve the dependencies anew and write requirements.lock
	@set -e; \
	$(FIND_PYTHON); \
	work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; trap 'exit 1' HUP INT TERM; \
	"$$python" -m venv "$$work/venv"; \
	"$$work/venv/bin/python" -m pip install --quiet '.[dev]'; \
	{ sed -n '/^#/p' requirements.lock; \
	  "$$work/venv/bin/python" -m pip freeze --all --exclude pip --exclude nst-batch; \
	} > "$$work/requirements.lock"; \
	cp "$$work/requirements.lock" requirements.lock; \
	"$$work/venv/bin/python" requirements.py

clean: ## remove caches and what was built; keeps .venv
	rm -rf build dist site demo-out *.egg-info .pytest_cache .mypy_cache .ruff_cache .artifacts
	find . -path ./$(VENV) -prune -o -path ./.git -prune -o \
	    -type d -name __pycache__ -exec rm -rf {} +
