# Every target does all the set-up that it needs in a fresh checkout: a virtual environment in .venv from the full pins of
# requirements/cpu.lock, renewed when the pins or what pyproject.toml says of the package change. On a machine with GPUs: `make demo DEVICE=gpu`.

# Of the virtual environment; none: requirements/python.sh finds one.
PYTHON ?=
DEVICE ?= cpu
# PyTorch's CPU build is not on the package index; this is where PyTorch publishes it.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN := .venv/bin
LOCK := requirements/$(DEVICE).lock
# By content, not by time: a `git pull` that changes no pin renews nothing. Settings of tools stand at pyproject.toml's end.
STATE := $(shell (cat $(LOCK); sed '/^\[tool\.ruff\]/,$$d' pyproject.toml) | sha256sum | cut -c1-16)
READY := .venv/.ready-$(DEVICE)-$(STATE)
# uv does not read pip's settings; where pip is told to look in a folder of wheels, uv shall too.
export UV_FIND_LINKS ?= $(or $(PIP_FIND_LINKS),$(TORCH_INDEX)/torch/)

# The engines' GPUs; trainings of this size are as fast on the CPU.
ON_gpu := --set resources.evaluate.gpus=1 --set resources.replay.gpus=1

.PHONY: help setup demo test mutants architectures lint format lock bench

help:  ## what there is to make
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile

setup: $(READY)  ## only the set-up

# The pins of one package, with their hashes, or of all others.
PINS = awk '/^[^ \#]/ {is = /^$(1)==/} $(2)is' $(3)

# Every pin carries the hashes of its files, and nothing else is installed, but for PyTorch's CPU build: its index gives none for all
# Pythons at once. torch comes first and by pip, which knows the extra index; uv then finds it installed and needs a tenth of pip's time for
# the rest. --retries 0: a machine that cannot reach the extra index must not wait for it. Bytecode is compiled here and not
# by the first run: Ray gives its processes 30 s to start, and several of them would compile the same files meanwhile.
$(READY):
	@rm -f .venv/.ready-*
	@test -x $(BIN)/python || { python=$$(sh requirements/python.sh $(PYTHON)) && "$$python" -m venv --clear .venv; }
	$(call PINS,uv,,requirements/cpu.lock) > .venv/uv.txt
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r .venv/uv.txt
	$(call PINS,torch,,$(LOCK)) > .venv/torch.txt
	$(BIN)/python -m pip install --quiet --retries 0 --no-deps -r .venv/torch.txt --extra-index-url $(TORCH_INDEX) || { \
		echo "cft-ray: there is no $$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' $(LOCK)) for $$($(BIN)/python -V) on the package index or at $(TORCH_INDEX)." >&2; \
		echo "  fix: let this machine reach one of them, or take another Python: rm -r .venv; make PYTHON=python3.11" >&2; exit 1; }
	$(call PINS,torch,!,$(LOCK)) > .venv/others.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --compile-bytecode --require-hashes -r .venv/others.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $@

demo: $(READY)  ## the smoke grid: every component for real, in minutes, then its results
	$(BIN)/cft-ray run grids/smoke.yaml $(ON_$(DEVICE))

# Two at a time, as many as the tests' own machine has cores; the tests of a file stay together and share what it has made.
test: $(READY)  ## all tests
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

ROOM ?= metrics
mutants: $(READY)  ## make mutants ROOM=metrics: which small wrong changes of a room its tests notice
	PYTHONPATH=benchmarks $(BIN)/python -m mutants $(ROOM)

architectures: $(READY)  ## the table of docs/models.md: every architecture of transformers, tried tiny
	$(BIN)/python benchmarks/architectures.py

lint: $(READY)  ## ruff and basedpyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: $(READY)  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The header and index options are left out so that the locks are the same wherever they are renewed.
COMPILE = $(BIN)/uv pip compile pyproject.toml --quiet --upgrade --python-version 3.11 --override requirements/overrides.txt \
	--no-header --no-emit-index-url --no-emit-find-links --generate-hashes

lock: $(READY)  ## renew both locks with the newest versions that pyproject.toml allows
	$(COMPILE) --extra cpu --extra cluster --extra test --extra dev --output-file requirements/cpu.lock
	awk '/^[^ \#]/ {is = /^torch==/} is {sub(/ *\\$$/, "")} !(is && /--hash=/)' requirements/cpu.lock > .venv/cpu.lock
	cp .venv/cpu.lock requirements/cpu.lock
	UV_FIND_LINKS= $(COMPILE) --extra gpu --extra cluster --extra loggers --extra test --extra dev --python-platform x86_64-manylinux_2_28 --output-file requirements/gpu.lock

bench: $(READY)  ## all benchmarks, one after the other; results go to reports/benchmarks/
	@for script in $(filter-out benchmarks/record.py,$(wildcard benchmarks/*.py)); do \
		echo "== $$script"; $(BIN)/python $$script || exit 1; done
