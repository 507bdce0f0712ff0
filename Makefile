# make demo | test | check | bench | bench-export | chaos | arm64 | test-arm64 | check-arm64 | bench-arm64: each sets up
# what it needs in .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test check bench bench-export chaos arm64 test-arm64 check-arm64 bench-arm64 format clean system emulator

demo: .venv/.device
	$(BIN)/edge-runtime demo $(DEMO)

test: .venv/.full emulator
	$(BIN)/python -m pytest $(TESTS)

check: .venv/.full
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: .venv/.full
	$(BIN)/python -m benchmarks

check-arm64: emulator
	$(BIN)/python -m benchmarks.arm64 --check

bench-arm64: emulator
	$(BIN)/python -m benchmarks.arm64

bench-export: .venv/.full .venv/.nncf
	$(BIN)/python -m benchmarks.compression $(COMPRESSION)

chaos: .venv/.full
	$(BIN)/python tests/faults/chaos.py $(CHAOS)

arm64: emulator
	rm -rf build/wheel build/lib build/bdist*
	$(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	$(BIN)/python -m export.arm64 --wheel build/wheel/*.whl

test-arm64: emulator
	EDGE_ARM64=long $(BIN)/python -m pytest tests/arm64 $(TESTS)

format: .venv/.full
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build *.egg-info

# Of the system. No stamp: what cannot be installed today is tried again next time, and nothing is done when it is there.
system:
	@PYTHON=$(PYTHON) scripts/install-system-packages

# What emulates a board; without it the checks on arm64 are skipped.
emulator: .venv/.full
	@scripts/install-system-packages arm64

# What a device needs; the demo's mosquitto falls back to amqtt where it cannot be installed.
.venv/.device: pyproject.toml constraints.txt | system
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --editable '.[cpu,demo]'
	touch $@

.venv/.full: .venv/.device
	$(PIP) --editable '.[cpu,cbor,fast-json,demo,export,dev]'
	$(PIP) --no-deps silero-vad
	rm -rf .venv/paho-oldest
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --target .venv/paho-oldest paho-mqtt==2.0.0
	touch $@

# A peer of bench-export, beside our environment and not in it.
.venv/.nncf: benchmarks/compression/nncf.txt | .venv/.full
	rm -rf .venv/nncf
	$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --target .venv/nncf --requirement benchmarks/compression/nncf.txt
	touch $@
