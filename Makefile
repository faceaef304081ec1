# One word per habit; `make` alone lists them.
PORT ?= 3000
MODELS ?= starter
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help serve test test-hub train lint lock

help:  ## list the words
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

serve: .venv/serve.stamp  ## install, save the models (MODELS=starter or hub), serve on 127.0.0.1 (PORT=3000)
	@$(BIN)/python -m train_and_save $(MODELS) > .venv/models.out
	@echo "Serving on http://127.0.0.1:$(PORT) - ready when the log says so. Then try:"
	@echo "  curl -F images=@$$(ls .venv/lib/python*/site-packages/ultralytics/assets/bus.jpg) http://127.0.0.1:$(PORT)/analyze"
	@echo
	@exec env $$(grep '^VISION_' .venv/models.out) $(BIN)/bentoml serve --host 127.0.0.1 --port $(PORT)

test: .venv/dev.stamp lint  ## lint, types and every test
	$(BIN)/pytest

test-hub: .venv/dev.stamp  ## models by name, with checkpoints as large as the originals
	FULL=1 $(BIN)/pytest tests/test_hub.py

lint: .venv/dev.stamp  ## ruff and mypy
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

train: .venv/train.stamp  ## install what training and measuring models need, and say how
	$(BIN)/python -m train_and_save --help

lock: .venv/serve.stamp  ## resolve requirements*.in into the lock files again
	$(BIN)/uv pip compile $(COMPILE) requirements.in -o requirements.lock
	$(BIN)/uv pip compile $(COMPILE) requirements-train.in -o requirements-train.lock
	$(BIN)/uv pip compile $(COMPILE) requirements-dev.in -o requirements-dev.lock

INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --no-deps
COMPILE := --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --override overrides.txt

# uv comes from the lock by pip; the lock is complete, so nothing is resolved again.
.venv/uv.stamp:
	$(PYTHON) -m venv .venv
	sed -n '/^uv==/,/^    # via/p' requirements.lock > .venv/uv.lock
	$(BIN)/pip install --quiet --require-hashes --no-deps -r .venv/uv.lock
	touch $@

.venv/serve.stamp: requirements.lock | .venv/uv.stamp
	$(INSTALL) -r requirements.lock
	touch $@

.venv/train.stamp: requirements-train.lock | .venv/uv.stamp
	$(INSTALL) -r requirements-train.lock
	touch .venv/serve.stamp $@

.venv/dev.stamp: requirements-dev.lock | .venv/uv.stamp
	$(INSTALL) -r requirements-dev.lock
	touch .venv/serve.stamp .venv/train.stamp $@
