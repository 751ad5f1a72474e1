# Two commands do everything on a fresh machine: make demo, make test. PYTHON chooses the interpreter.
PYTHON ?= python3
RUN := .venv/bin

.PHONY: demo test triton check bench wheel clean

.venv/installed: pyproject.toml setup.py constraints.txt
	test -x $(RUN)/python || $(PYTHON) -m venv .venv
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,plots,lm-eval,zarr,gym,atari,gameboy,hanabi,ray]'
	touch $@

# An interrupted demo goes on where it stopped.
demo: .venv/installed
	$(RUN)/fox-train fit --config train/configs/demo.yaml
	$(RUN)/fox-eval per-token-loss --model runs/demo/model --output runs/demo
	$(RUN)/fox-eval needle --model runs/demo/model --output runs/demo --modes assignment \
		--lengths 128 256 512 1024 --depths 0 0.25 0.5 0.75 1 --seeds 8
	$(RUN)/fox-eval samples --model runs/demo/model --output runs/demo
	$(RUN)/fox-eval recall --output runs/demo
	$(RUN)/fox-eval summary runs/demo

test: .venv/installed
	$(RUN)/python -m pytest
	TRITON_INTERPRET=1 $(RUN)/python -m pytest tests/kernels/flash

# The Triton kernels on another Triton, interpreted and compiled: make triton TRITON=3.6.0. The
# interpreters before 3.9 need an older numpy, and warn of what it will forbid.
TRITON ?= 3.6.0
OTHER := PYTHONPATH=build/triton-$(TRITON) $(RUN)/python -m pytest
triton: .venv/installed
	$(RUN)/python -m pip install --quiet --no-deps --target build/triton-$(TRITON) triton==$(TRITON) numpy==2.2.6
	TRITON_INTERPRET=1 $(OTHER) -W 'ignore:Conversion of an array' tests/kernels/flash
	$(OTHER) tests/kernels/flash/test_compiled.py

# Type checkers do not see the folder -> package mapping of an editable install, so the installed
# shape is laid out in build/types.
check: .venv/installed
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	rm -rf build/types && mkdir -p build/types/fox
	ln -s $(CURDIR)/fox/* $(CURDIR)/kernels $(CURDIR)/train $(CURDIR)/eval build/types/fox
	cd build/types && $(CURDIR)/$(RUN)/mypy --config-file $(CURDIR)/pyproject.toml -p fox

bench: .venv/installed
	$(RUN)/python benchmarks/attention_cpu.py
	$(RUN)/python benchmarks/training_throughput.py
	$(RUN)/python benchmarks/decode_differences.py
	$(RUN)/python benchmarks/decode_cpu.py $(if $(wildcard runs/demo/model),--checkpoint runs/demo/model)

# build/ is removed first: a module deleted from the sources would come back in the wheel.
wheel: .venv/installed
	rm -rf build dist
	$(RUN)/python -m build

clean:
	rm -rf .venv build dist runs *.egg-info
