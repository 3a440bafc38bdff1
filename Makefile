# The one entry for users and contributors; CI calls the same targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo check test js-client protos clean

setup: $(STAMP)

$(STAMP): pyproject.toml setup.py irv2/images/_bicubic.c
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON): too old; expected Python 3.11 or later; make PYTHON=python3.11 setup" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev]"
	@touch $@

demo: setup
	PATH="$(abspath $(BIN)):$$PATH" bash docs/demo.sh

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) --no-print-directory protos
	git diff --exit-code --stat -- irv2/v1 irv2/inference

# CI runs the slow ones too, as `CI=true make test` does anywhere.
test: setup
	$(BIN)/python -m pytest $(if $(CI),,-m "not slow")

# The JavaScript client that a test uses; without it the test is skipped, in CI it fails.
js-client: setup
	npm install --no-audit --no-fund --silent --prefix $(VENV)/js @grpc/grpc-js@1 @grpc/proto-loader@0.8

# Generated code is committed, so that users need no compiler; `check` proves it current.
protos: setup
	$(BIN)/python -m grpc_tools.protoc -Iprotos \
		-I"$$($(BIN)/python -c 'import google.rpc, pathlib; print(pathlib.Path(google.rpc.__path__[0]).parents[1])')" \
		--python_out=. --pyi_out=. --grpc_python_out=. $(shell find protos -name '*.proto')

clean:
	rm -rf build dist *.egg-info irv2/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis
