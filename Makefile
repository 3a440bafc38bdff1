# The one entry for users and contributors; CI calls the same targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NEWEST := $(VENV)-newest
LOCKER := $(VENV)-lock
COMPILE := $(LOCKER)/bin/uv pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"
# What torch brings for its build with CUDA; a build without it has none of these.
CUDA := cuda-toolkit nvidia-cublas nvidia-cudnn-cu13 nvidia-cusparselt-cu13 nvidia-nccl-cu13 \
	nvidia-nvshmem-cu13 triton

.PHONY: setup demo check docs test newest lock image js-client release protos clean

setup: $(STAMP)

# Versions are those of the lock. torch alone is left to the index at hand, in the range of
# pyproject.toml, so that it may be a build with CUDA or without.
$(STAMP): pyproject.toml setup.py irv2/images/_bicubic.c requirements/build.lock requirements/dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON): too old; expected Python 3.11 or later; make PYTHON=python3.11 setup" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements/build.lock
	$(BIN)/pip install --quiet --require-hashes --no-build-isolation -r requirements/dev.lock
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[train]"
	@touch $@

demo: setup
	PATH="$(abspath $(BIN)):$$PATH" bash docs/demo.sh

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) --no-print-directory protos
	git diff --exit-code --stat -- irv2/v1 irv2/inference irv2/reflection
	$(MAKE) --no-print-directory docs

# The pages of docs/, and those that are made from the sources. Warnings, as of a link that leads
# nowhere, are errors.
docs: setup
	$(BIN)/sphinx-build --fresh-env --fail-on-warning --nitpicky --quiet -c docs/site docs build/docs
	@echo "build/docs/index.html"

# CI runs the slow ones too, as `CI=true make test` does anywhere. Tests that measure, or need both
# cores, run when the others are done; their files alone are read again, since all take a while.
test: setup
	@echo "On 2 cores this takes about $(if $(CI),22,10) minutes."
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not alone $(if $(CI),,and not slow)"
	$(BIN)/python -m pytest -m "alone $(if $(CI),,and not slow)" $$(grep -rl --include='test_*.py' 'mark\.alone' tests)

# The quick tests with the newest versions that pyproject.toml allows, to see what is coming.
newest: setup
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/pip install --quiet --editable ".[dev]"
	$(NEWEST)/bin/python -m pytest -q -n 2 -m "not slow and not alone" tests/unit

# Renews the versions. uv reads its index from UV_DEFAULT_INDEX, not from pip's settings.
lock:
	$(PYTHON) -m venv $(LOCKER)
	$(LOCKER)/bin/pip install --quiet --upgrade uv
	printf '%s\n' $(CUDA) | $(COMPILE) --extra dev --excludes - --no-emit-package torch -o requirements/dev.lock
	echo "setuptools>=77" | $(COMPILE:pyproject.toml=-) -c requirements/dev.lock -o requirements/build.lock
	echo "cyclonedx-bom>=7,<8" | $(COMPILE:pyproject.toml=-) -o requirements/sbom.lock
	$(COMPILE) --extra cpu -c requirements/dev.lock -o requirements/serve.lock
	$(COMPILE) --extra cpu --extra openvino -c requirements/dev.lock -o requirements/serve-openvino.lock
	$(COMPILE) --extra train --extra convert --extra gpu -c requirements/dev.lock -o requirements/gpu.lock

# `make image TARGET=gpu`, `make image IMAGE_ARGS="--build-arg OPENVINO=1"`: see the Dockerfile.
TARGET ?= serve
IMAGE ?= irv2:$(TARGET)
BUILDER ?= $(firstword $(foreach name,docker podman buildah,$(shell $(name) info >/dev/null 2>&1 && echo $(name))))
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' irv2/__init__.py)
REVISION ?= $(shell git describe --always --abbrev=40 --dirty 2>/dev/null)
# The time of the commit is that of every file, so that its image can be built again.
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || date +%s)

image:
	@test -n "$(BUILDER)" || { echo "error: no builder of images answers; expected docker with its daemon, podman or buildah" >&2; exit 1; }
	SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) $(BUILDER) build --target $(TARGET) --tag $(IMAGE) \
		$(if $(filter docker,$(BUILDER)),,--format docker --timestamp $(SOURCE_DATE_EPOCH)) \
		--build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) \
		--build-arg CREATED=$(shell date -u -d @$(SOURCE_DATE_EPOCH) +%Y-%m-%dT%H:%M:%SZ) $(IMAGE_ARGS) .

# The JavaScript that tests use: a client of gRPC, without which a test fails in CI, and axe-core.
js-client: setup
	npm install --no-audit --no-fund --silent --prefix $(VENV)/js @grpc/grpc-js@1 @grpc/proto-loader@0.8 axe-core@4

# A release from a tag, which must hold the change log's dated heading. Nothing is uploaded.
release: setup
	@test -n "$(TAG)" || { echo "error: no tag given; expected make release TAG=v$(VERSION)" >&2; exit 1; }
	$(BIN)/python tests/long/release.py $(TAG) --out dist/$(TAG)

# Generated code is committed, so that users need no compiler; `check` proves it current.
protos: setup
	$(BIN)/python -m grpc_tools.protoc -Iprotos \
		-I"$$($(BIN)/python -c 'import google.rpc, pathlib; print(pathlib.Path(google.rpc.__path__[0]).parents[1])')" \
		--python_out=. --pyi_out=. --grpc_python_out=. $(shell find protos -name '*.proto')

clean:
	rm -rf build dist *.egg-info irv2/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis
