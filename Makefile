# One word per habit; `make` alone lists them.
PORT ?= 3000
MODELS ?= starter
PYTHON ?= python3
BENTOFILE ?= bentofile.yaml
BACKEND ?= docker
IMAGE ?= vision:latest
MINUTES ?= 30
SECONDS ?= 460
CASES ?= starters
FEATURES ?= classification captioning detection
BIN := .venv/bin

# The light install runs models that have graphs, on CPUs. The full one comes with FULL=1, MODELS=hub or a GPU, and stays.
GPU = $(shell nvidia-smi -L 2> /dev/null | grep '^GPU')
SERVING = .venv/$(if $(or $(FULL),$(filter hub,$(MODELS)),$(wildcard .venv/full.stamp),$(GPU)),full,light).stamp

.DEFAULT_GOAL := help
.PHONY: help serve install install-ray score bento image image-cpu test test-fast test-hub test-checkpoints test-image test-proxy test-kill test-ray bench-bulk fuzz soak bench planted sunglasses gpu train lint lock sbom

help:  ## list the words
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

serve: install  ## install, save the models (MODELS=starter or hub), serve on 127.0.0.1 (PORT=3000); FULL=1 with PyTorch
	@$(BIN)/python -m train_and_save $(MODELS) > .venv/models.out
	@echo "Serving on http://127.0.0.1:$(PORT) - ready when the log says so. Then try:"
	@echo "  open http://127.0.0.1:$(PORT) in a browser"
	@echo "  curl -F images=@examples/photographer.jpg http://127.0.0.1:$(PORT)/analyze"
	@echo
	@exec env $$(grep '^VISION_' .venv/models.out) $(BIN)/bentoml serve --host 127.0.0.1 --port $(PORT)

install:  ## install what serving needs here: light, or with PyTorch for a GPU, MODELS=hub or FULL=1
	@$(MAKE) --no-print-directory $(SERVING)

score: install .venv/bulk.stamp  ## score a collection into Parquet files: PHOTOS=folder OUT=results (FEATURES="classification detection")
	@$(BIN)/python -m train_and_save $(MODELS) > .venv/models.out
	@env $$(grep '^VISION_' .venv/models.out) $(BIN)/python -m bulk score "$(PHOTOS)" --out "$(OUT)" --features $(FEATURES)

install-ray: install .venv/ray.stamp  ## install what `python -m bulk score --engine ray` needs

bento: install  ## build the Bento: code, models and locked dependencies (MODELS=starter or hub)
	@$(BIN)/python -m train_and_save $(MODELS) > .venv/models.out
	@env BENTOML_DO_NOT_TRACK=True $$(grep '^VISION_' .venv/models.out) $$(env | grep '^VISION_[A-Z]*_MODEL=') $(BIN)/bentoml build -f $(BENTOFILE)

image:  ## put the Bento into a container image, vision:latest (BACKEND=docker, podman or buildah)
	@$(BACKEND) info > /dev/null 2>&1 || { echo "$(BACKEND) does not answer: install or start it, or name another, as in BACKEND=podman." >&2; exit 1; }
	@$(MAKE) --no-print-directory bento
	@BENTOML_DO_NOT_TRACK=True $(BIN)/bentoml containerize vision:latest --backend $(BACKEND) -t $(IMAGE)

image-cpu:  ## the same for machines without a GPU, of the light install, a tenth as large: vision:cpu
	@$(MAKE) --no-print-directory image BENTOFILE=deploy/image/bentofile-cpu.yaml IMAGE=vision:cpu

test: .venv/dev.stamp lint  ## lint, types and every test; how much of the code they ran, in all processes
	@rm -rf build/coverage && mkdir -p build/coverage
	$(BIN)/coverage run -m pytest --numprocesses 2 --dist loadfile
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

test-fast: .venv/dev.stamp  ## the tests that need no server, no saved model and few seconds, under a minute
	$(BIN)/pytest --numprocesses auto --dist loadfile -m "not served"

test-hub: .venv/dev.stamp  ## models by name, with checkpoints as large as the originals
	FULL=1 $(BIN)/pytest tests/train_and_save/test_hub.py tests/train_and_save/test_folder.py

test-checkpoints: .venv/dev.stamp  ## YOLO checkpoints that real old releases of Ultralytics write, saved and compared
	$(BIN)/pytest tests/checkpoints/proof.py

test-image: .venv/dev.stamp  ## build the images with buildah and ask them about photographs (Debian, as root)
	$(BIN)/pytest -s tests/containerize/image.py

test-proxy: .venv/dev.stamp  ## two replicas behind the proxy: one killed, drained, rolled to another model, under load
	$(BIN)/pytest tests/proxy/proof.py

test-kill: .venv/dev.stamp  ## bulk scoring killed a hundred times over 20,000 pictures: none lost, none twice (PICTURES=, KILLS=)
	$(BIN)/pytest -s tests/bulk/proof.py

test-ray: .venv/dev.stamp  ## bulk scoring on a Ray cluster of three nodes here: a worker, the driver, a node killed (PICTURES=)
	$(BIN)/pytest -s tests/bulk/cluster_proof.py

fuzz: .venv/dev.stamp  ## 20,000 broken pictures, 2,000 generated requests, bombs: what is answered, and what it costs
	$(BIN)/python -m testkit.fuzz

soak: .venv/dev.stamp  ## mixed load for MINUTES=30, five in a hundred inputs bad: what grows, leaks or dies
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

bench: .venv/bench.stamp  ## this service beside its peers, a table in build/peers (CASES=starters, production or all; hours)
	.venv/bench/bin/python -m benchmarks.peers --cases $(CASES)

planted: .venv/dev.stamp  ## whether `bulk impact` finds a planted effect, 200 times over (needs ../shared/photos)
	$(BIN)/python -m train_and_save starter > .venv/models.out
	$(BIN)/python -m benchmarks.planted

sunglasses: .venv/dev.stamp  ## how well sunglasses are recognised on labelled photographs (needs ../shared/photos)
	$(BIN)/python -m train_and_save starter > .venv/models.out
	$(BIN)/python -m benchmarks.sunglasses

bench-bulk: .venv/dev.stamp  ## bulk scoring beside the bare loop, in turns (CASES=starters, production or all)
	$(BIN)/python -m benchmarks.bulk --cases $(CASES)

gpu:  ## what a GPU makes of the models, bare and over HTTP, in 8 minutes; no venv (WHEELS=folder for what PYTHON lacks, FULL=1)
	@site=$$(mktemp -d) && trap 'rm -rf "$$site"' EXIT && if [ -n "$(WHEELS)" ]; then $(PYTHON) -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$$site" $(WHEELS)/*.whl; fi && PYTHONPATH="$$site$${PYTHONPATH:+:$$PYTHONPATH}" $(PYTHON) -m benchmarks.gpu $(if $(FULL),--full) --seconds $(SECONDS)

lint: .venv/dev.stamp  ## ruff and mypy
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

train: .venv/train.stamp  ## install what training and measuring models need, and say how
	$(BIN)/python -m train_and_save --help

lock: .venv/uv.stamp  ## resolve requirements*.in into the lock files again
	$(BIN)/uv pip compile $(COMPILE) requirements-light.in -o requirements-light.lock
	$(BIN)/uv pip compile $(COMPILE) requirements.in -o requirements.lock
	$(BIN)/uv pip compile $(COMPILE) requirements-train.in -o requirements-train.lock
	$(BIN)/uv pip compile $(COMPILE) requirements-bulk.in -o requirements-bulk.lock
	$(BIN)/uv pip compile $(COMPILE) requirements-ray.in -o requirements-ray.lock
	$(BIN)/uv pip compile $(COMPILE) requirements-dev.in -o requirements-dev.lock
	$(BIN)/uv pip compile $(COMPILE) requirements-audit.in -o requirements-audit.lock
	$(BIN)/uv pip compile $(COMPILE) requirements-bench.in -o requirements-bench.lock

sbom: .venv/audit.stamp  ## what the image installs: an SBOM (CycloneDX, build/sbom.json) and the licences (LICENCES.md)
	@$(BIN)/uv venv --quiet --clear --python 3.11 .venv/image
	@$(BIN)/uv pip install --quiet --python .venv/image/bin/python --require-hashes --no-deps -r requirements.lock
	@mkdir -p build
	.venv/audit/bin/cyclonedx-py environment --output-reproducible --output-format JSON --output-file build/sbom.json .venv/image
	@printf '# Licences of what the image installs\n\nAs the packages tell it; `make sbom` writes this file.\n\n' > LICENCES.md
	.venv/audit/bin/pip-licenses --python .venv/image/bin/python --with-system --from mixed --format markdown --with-urls --order license | sed -E 's/ +/ /g; /^\|-/s/-+/-/g' >> LICENCES.md
	@rm -r .venv/image

INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --no-deps
COMPILE := --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --override overrides.txt

# uv comes from the lock by pip; the lock is complete, so nothing is resolved again.
.venv/uv.stamp:
	$(PYTHON) -m venv .venv
	sed -n '/^uv==/,/^    # via/p' requirements-dev.lock > .venv/uv.lock
	$(BIN)/pip install --quiet --require-hashes --no-deps -r .venv/uv.lock
	touch $@

.venv/light.stamp: requirements-light.lock | .venv/uv.stamp
	$(INSTALL) -r requirements-light.lock
	touch $@

.venv/full.stamp: requirements.lock | .venv/uv.stamp
	$(INSTALL) -r requirements.lock
	touch $@

.venv/train.stamp: requirements-train.lock | .venv/uv.stamp
	$(INSTALL) -r requirements-train.lock
	touch .venv/full.stamp $@

.venv/bulk.stamp: requirements-bulk.lock | .venv/uv.stamp
	$(INSTALL) -r requirements-bulk.lock
	touch $@

.venv/ray.stamp: requirements-ray.lock | .venv/uv.stamp
	$(INSTALL) -r requirements-ray.lock
	touch .venv/bulk.stamp $@

.venv/dev.stamp: requirements-dev.lock | .venv/uv.stamp
	$(INSTALL) -r requirements-dev.lock
	touch .venv/full.stamp .venv/train.stamp .venv/bulk.stamp .venv/ray.stamp $@

.venv/audit.stamp: requirements-audit.lock | .venv/uv.stamp
	$(BIN)/uv venv --quiet --clear .venv/audit
	$(BIN)/uv pip install --quiet --python .venv/audit/bin/python --require-hashes --no-deps -r requirements-audit.lock
	touch $@

.venv/bench.stamp: requirements-bench.lock | .venv/uv.stamp
	$(BIN)/uv venv --quiet --clear .venv/bench
	$(BIN)/uv pip install --quiet --python .venv/bench/bin/python --require-hashes --no-deps -r requirements-bench.lock
	touch $@
