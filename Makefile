# Every target first sets up what it needs, in .venv of this folder: `make train` works on a fresh clone.
#
#   make train [DATA=folder] [RECIPE=tiny] [CONFIG=ds_configs/zero3_local.json] [OUTPUT=folder] [SET="optim.lr=1e-3 …"]
#   make test [ARGS="-k name"]
#   make test-hosts
#   make fuzz [CASES=2000000]
#   make kernels [TRITON=3.6.0]
#   make gpu
#   make lint
#   make bench [BENCHES="memory save"]
#   make scorecard [ARGS="--only soak"]
#   make report [ARGS="--compare OLD NEW"]
#   make clean
#
# PYTHON=python3.11 takes another Python, PIP_ARGS="…" goes to pip (an index with CPU builds of torch, say).

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

SYNTHETIC := .cache/synthetic
RECIPE ?= tiny
CONFIG ?=
HOSTFILE ?= hostfiles/local.hostfile
DATA ?= $(SYNTHETIC)
OUTPUT ?= runs/$(RECIPE)_$(notdir $(patsubst %/,%,$(DATA)))
SET ?=
CASES ?= 2000000
BENCHES ?= communication data mask_loss memory peer_training pictures plan rasterize rel_pos_attention save saved_bytes train_step
TRITON ?=
OTHER_TRITON = .cache/triton-$(TRITON)

# The local runs are meant for CPUs; DS_ACCELERATOR=cuda takes two GPUs.
export DS_ACCELERATOR ?= cpu
# Two ranks with more threads than cores wait for each other at every step.
export OMP_NUM_THREADS ?= 1
ifeq ($(DS_ACCELERATOR),cpu)
# Freed memory is kept and comes in large pages: asking for it anew costs a CPU run a tenth of its time.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=100000000000
endif
# Where DeepSpeed compiles its optimizers. In a folder of its own no other job's lock can hang us.
export TORCH_EXTENSIONS_DIR := $(CURDIR)/$(VENV)/torch_extensions
# ninja, which compiles them, comes from pip.
WITH_PATH = PATH="$(CURDIR)/$(BIN):$$PATH"
FREE_PORT = $$($(BIN)/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
# A compilation that was killed leaves a lock on which later ones wait for ever. None takes ten minutes.
UNLOCK = mkdir -p $(TORCH_EXTENSIONS_DIR) && find $(TORCH_EXTENSIONS_DIR) -name lock -mmin +10 -delete

.PHONY: help train test test-hosts fuzz kernels gpu lint bench scorecard report clean

help:
	@sed -n '/^#   make/s/^#   //p' Makefile

train: $(VENV)/.installed $(if $(filter $(SYNTHETIC),$(DATA)),$(SYNTHETIC).complete)
	@$(UNLOCK)
	$(WITH_PATH) deepspeed --log_level warning --hostfile $(HOSTFILE) --no_ssh_check \
		--master_addr 127.0.0.1 --master_port $(FREE_PORT) \
		--module sam_ds train --recipe $(RECIPE) $(if $(CONFIG),--deepspeed_config $(CONFIG)) --data $(DATA) --output $(OUTPUT) \
		$(foreach setting,$(SET),--set '$(setting)')

test: $(VENV)/.installed-dev
	@$(UNLOCK)
	$(WITH_PATH) python -m pytest -n 2 --dist loadfile $(ARGS)

# The real launcher on several hosts, made of this machine's namespaces. Only root can make them, and install this:
HOST_PROGRAMS := ip:iproute2 sshd:openssh-server pdsh:pdsh

test-hosts: $(VENV)/.installed-dev
	@[[ $$EUID -eq 0 ]] || { echo "make: run test-hosts as root, in a container, say: it makes hosts" >&2; exit 1; }
	@missing=; for program in $(HOST_PROGRAMS); do \
		PATH="$$PATH:/usr/sbin" command -v $${program%:*} >/dev/null || missing+=" $${program#*:}"; done; \
	if [[ $$missing ]]; then apt-get update --quiet && apt-get install --yes --quiet --no-install-recommends $$missing; fi
	$(WITH_PATH) SAM_DS_HOSTS=1 python -m pytest tests/hosts $(ARGS)

# What is read from outside, wrong in millions of ways.
fuzz: $(VENV)/.installed-dev
	$(WITH_PATH) python -m tests.fuzz --cases $(CASES)

# The kernels' numbers in Triton's interpreter, and what the compiler makes of them for GPUs that are not here.
# TRITON tries another version than the one that is installed.
kernels: $(VENV)/.installed-dev $(if $(TRITON),$(OTHER_TRITON))
	@# The compiler works while the interpreter does; the tests then find what it made.
	export PYTHONPATH=$(if $(TRITON),$(OTHER_TRITON)); mkdir -p .cache; \
	$(BIN)/python -m sam_ds_kernels.static > .cache/kernels_static.txt & table=$$!; \
	failed=0; $(WITH_PATH) python -m pytest tests/kernels $(ARGS) || failed=$$?; \
	wait $$table; cat .cache/kernels_static.txt; exit $$failed

.cache/triton-%: | $(VENV)/.installed-dev
	@# The interpreter of Triton 3.6 takes arrays of one element for numbers, which newer versions of NumPy refuse.
	$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps --target $@ triton==$* 'numpy<2.4'

# On a machine with CUDA, with PYTHON's own torch, triton and pytest: nothing is installed, DeepSpeed is not needed.
gpu:
	unset OMP_NUM_THREADS GLIBC_TUNABLES; PYTHONPATH=.:kernels $(PYTHON) -m pytest tests/kernels $(ARGS)
	unset OMP_NUM_THREADS GLIBC_TUNABLES; for name in rel_pos_attention mask_loss rasterize train_step; do \
		PYTHONPATH=.:kernels $(PYTHON) benchmarks/bench_$$name.py; done

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Data, steps, memory, checkpoints, communication, kernels, peers: under half an hour on two cores. All but what the
# scorecard looks at anyway: BENCHES=tracking.
bench: $(VENV)/.installed-dev
	for name in $(BENCHES); do $(WITH_PATH) python benchmarks/bench_$$name.py; done

# Every fault that a training must survive, planted and survived: an hour, and docs/reliability.md.
scorecard: $(VENV)/.installed-dev
	@$(UNLOCK)
	$(WITH_PATH) python benchmarks/scorecard.py $(ARGS)

# Charts and a page of what stands in benchmarks/results; or what became worse from one set of results to another.
report: $(VENV)/.installed
	$(BIN)/python benchmarks/report.py $(ARGS)

clean:
	rm -rf $(VENV) .cache build benchmarks/report *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(SYNTHETIC).complete: sam_ds/data/synthetic.py sam_ds/data/scenes.py | $(VENV)/.installed
	rm -rf $(SYNTHETIC)
	$(BIN)/sam-ds data synth $(SYNTHETIC)
	touch $@

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "make: $(PYTHON) is not Python 3.10 or newer; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "make: $(PYTHON) cannot make virtual environments; install its venv package (Debian: python3-venv)" >&2; exit 1; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: setup.py constraints.txt | $(VENV)/.created
	@echo "Installing into $(VENV): a few minutes the first time."
	$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check $(PIP_ARGS) --constraint constraints.txt --editable '.[fast]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check $(PIP_ARGS) --constraint constraints.txt --editable '.[dev]'
	@touch $@
