PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export HF_HUB_OFFLINE := 1

.PHONY: help demo install test test-all lint format clean
help:
	@echo "make demo      train and test on demo textures, and say where the pictures are"
	@echo "make install   set up $(VENV) with all that is needed"
	@echo "make test      run the test suite"
	@echo "make test-all  run the test suite with what takes long"
	@echo "make lint      ruff, format check, mypy"
	@echo "make format    let ruff mend what it can"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/anomalib-dskd demo

# Two test files at a time: most tests wait for a command to start.
# PASSIVE, since torch's threads would else spin against those of the other process.
PYTEST := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses 2 --dist loadfile
# those that run OpenVINO in the test's own process have one to themselves: after them torch crashed in training
OPENVINO_TESTS := tests/test_benchmark_cost.py tests/test_export.py tests/test_inspector.py

test: $(INSTALLED)
	$(PYTEST) $(addprefix --ignore=,$(OPENVINO_TESTS))
	$(PYTEST) $(OPENVINO_TESTS)

test-all: $(INSTALLED)
	$(PYTEST) -m "" $(addprefix --ignore=,$(OPENVINO_TESTS))
	$(PYTEST) -m "" $(OPENVINO_TESTS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist
