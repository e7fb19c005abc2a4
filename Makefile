# The commands of this repository. `make demo` and `make test` need Python 3.11 or newer and nothing else.

PYTHON ?= python3
BIN := .venv/bin
SCRIPTS := start.sh download_models.sh $(wildcard docker/scripts/*.sh tests/image/*.sh)
READY := .venv/.ready

.PHONY: setup demo test check faults image-test test-comfyui test-workflows bench format lock clean

setup: $(READY)

$(READY): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; name one with make PYTHON=...") if sys.version_info < (3, 11) else None'
	@echo "Installing into .venv …"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-dev.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## one clip from the sandbox, in out/demo.mp4
	@$(BIN)/ltx demo --out out/demo.mp4

test: setup ## every test that needs no ComfyUI
	$(BIN)/pytest --ignore tests/faults -n 4 --dist worksteal

check: setup ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/ltx workflows
	$(BIN)/ltx docs
	$(BIN)/shellcheck $(SCRIPTS)
	$(BIN)/shfmt -i 2 -ci -d $(SCRIPTS)
	$(BIN)/hadolint Dockerfile

test-comfyui: setup ## the contract on a real ComfyUI with tiny weights (COMFYUI_DIR)
	$(BIN)/pytest tests/contract tests/comfyui --ignore tests/comfyui/workflows --engine comfyui --timeout 300 -n 2 --dist loadfile

faults: setup ## every fault through RunPod's job loop, as a table; on a real ComfyUI too where there is one
	@$(BIN)/pytest tests/faults $(FAULTS) -q --timeout 240 -n 4; status=$$?; cat out/faults.md; exit $$status

test-workflows: setup ## every option of every workflow on a real ComfyUI; some ten minutes
	$(BIN)/pytest tests/comfyui/workflows --engine comfyui --timeout 300 -n 2

image-test: ## build the image with buildah and try it (root, Debian); see the script for what it takes
	tests/image/image_test.sh

bench: setup ## the worker's own time for a warm job, on the sandbox
	$(BIN)/python bench/overhead.py --engine sandbox --jobs 30 --json out/overhead-sandbox.json

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: ## make both lock files again; needs uv
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links pyproject.toml -o requirements.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links --group dev -c requirements.lock pyproject.toml -o requirements-dev.lock

clean:
	rm -rf .venv out .pytest_cache .ruff_cache
