# `make` shows the targets. Each of them builds .venv by itself the first time and when a pin has changed.

# Which Python the environment is made with: the first on the PATH that fits, or make PYTHON=/path/to/python3.12
PYTHON = $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	if $$python -c $(FITS) 2>/dev/null; then echo $$python; break; fi; done)
FITS = 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))'

VENV = .venv/bin/python
READY = .venv/ready
UNFINISHED = .venv/unfinished
UV = $(VENV) -m uv

# Beside a busy neighbor, OpenMP threads that spin while they wait make a 2-thread step up to ten times slower.
export OMP_WAIT_POLICY = PASSIVE
export TOKENIZERS_PARALLELISM = false

# Test processes, each with one thread (tests/conftest.py). A file's tests stay in one of them, the long files first.
WORKERS = 2
PYTEST = HF_HUB_OFFLINE=1 $(VENV) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: help notebooks real hosted interchange check test chaos fuzz lint format lab studio lock repository clean

help:
	@echo "make notebooks  run every notebook on the tiny models and write the outputs back (ONLY=01 for one;"
	@echo "                ONLY=01 ARGS='-p NAME VALUE' with another parameter, kept under outputs/)"
	@echo "make real       run them for a few steps with small models that have the published vocabularies, which come"
	@echo "                from PyPI and npm (ONLY=01 for one)"
	@echo "make hosted     run them from a clone in an environment like Google Colab's (ONLY=01 for one;"
	@echo "                PYTHON=/path/to/python3.13): ten minutes, 5 GB the first time"
	@echo "make interchange  run LLaMA-Factory and ms-swift on files that are written here, and write what they did into"
	@echo "                docs/interchange.md (ARGS='--only ms-swift', ARGS=--help): half an hour, 15 GB the first time"
	@echo "make check      lint, and run the tests that take less than a second: two minutes"
	@echo "make test       run all tests (ARGS='-k records' for some): over half an hour"
	@echo "make chaos      kill jobs, fill disks, damage files, and see what comes of it: docs/reliability.md"
	@echo "                (ARGS='--minutes 30 --seed 7 --only train', ARGS=--help)"
	@echo "make fuzz       try ever new files, settings and command lines: docs/reliability.md"
	@echo "                (ARGS='--minutes 60 --only csv', ARGS=--help)"
	@echo "make lint       check the style of the code and of the notebooks, and which room imports which"
	@echo "make format     bring the code and the notebooks into that style"
	@echo "make lab        open JupyterLab"
	@echo "make studio     open the training panel as a page (ARGS='FOLDER --port 8866 --language zh --no-browser')"
	@echo "make lock       pin again in constraints.txt what requirements.txt needs"
	@echo "make repository NAME=owner/name  write the project's address on GitHub wherever it stands"
	@echo "make clean      remove what runs leave behind; .venv stays"

notebooks: $(READY)
	@$(VENV) tools/run_notebooks.py $(foreach number,$(ONLY),--only $(number)) $(ARGS)

real: $(READY)
	@HF_HUB_OFFLINE=1 $(VENV) tools/run_real.py $(foreach number,$(ONLY),--only $(number))

hosted: $(READY)
	@$(VENV) tools/run_hosted.py $(foreach number,$(ONLY),--only $(number)) $(HOSTED_PYTHON)

# The default of PYTHON above is for .venv: Colab has another.
HOSTED_PYTHON = $(if $(filter command,$(origin PYTHON)),--python $(PYTHON))

interchange: $(READY)
	@HF_HUB_OFFLINE=1 $(VENV) tools/run_interchange.py $(ARGS)

check: lint
	@$(PYTEST) -m "not slow" --durations 10 --durations-min 1 $(ARGS)

test: $(READY)
	@$(PYTEST) $(ARGS)

chaos: $(READY)
	@PYTHONPATH=tools:tests/helpers $(VENV) -W ignore -m chaos $(ARGS)

fuzz: $(READY)
	@$(VENV) tools/fuzz.py $(ARGS)

lint: $(READY)
	@$(VENV) -m ruff check .
	@$(VENV) -m ruff format --check . || { echo "make format does it."; exit 1; }
	@$(dir $(VENV))lint-imports --no-logo

format: $(READY)
	@$(VENV) -m ruff format .

lab: $(READY)
	@$(VENV) -m jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks

studio: $(READY)
	@$(VENV) -m vlmhelpers studio $(ARGS)

# Depends on uv alone, so that it also works when the old pins contradict the new ones.
lock:
	$(make_venv)
	@$(UV) pip compile --universal --python-version 3.11 --no-annotate --quiet \
		--custom-compile-command "make lock" requirements.txt --output-file constraints.txt >/dev/null
	@echo "constraints.txt holds $$(grep -c == constraints.txt) pins."

repository: $(READY)
	@$(VENV) tools/repository.py $(NAME)

clean:
	rm -rf outputs notebooks/outputs notebooks/.ipynb_checkpoints build
	rm -rf .pytest_cache .hypothesis .ruff_cache .import_linter_cache
	find vlmhelpers tools tests -name __pycache__ -prune -exec rm -rf {} +

$(READY): requirements.txt constraints.txt pyproject.toml
	$(make_venv)
	@echo "[2/4] Installing $$(grep -c == constraints.txt) packages (several GB to download the first time)"
	@touch $(UNFINISHED)
	@$(UV) pip install --python $(VENV) -r requirements.txt -c constraints.txt
	@echo "[3/4] Installing vlmhelpers, editable, from this folder"
	@$(UV) pip install --python $(VENV) --quiet --no-deps --no-build-isolation --editable .
	@echo "[4/4] Checking that torch, torchvision and transformers import together"
	@$(VENV) -c 'import torch, torchvision, vlmhelpers; from transformers import AutoImageProcessor; \
		vlmhelpers.show_versions()' 2>.venv/check.log || { cat .venv/check.log; echo "They do not. Perhaps an index or" \
		"find-links in uv's settings offered another build of torch than the pinned one of PyPI."; exit 1; }
	@mv $(UNFINISHED) $@
	@echo "The environment is ready in .venv"

# Keeps an environment whose uv runs. Makes it from nothing otherwise, and also after an interrupted installation, which
# can leave packages that look whole and are not; what was downloaded is still in uv's cache then.
define make_venv
@if [ ! -e $(UNFINISHED) ] && $(UV) --version >/dev/null 2>&1; then echo "[1/4] Using .venv"; else \
	python="$(PYTHON)"; : "$${python:=python3}"; \
	if ! "$$python" -c $(FITS) 2>/dev/null; then \
		echo "This needs Python 3.11 to 3.14; $$python is: $$("$$python" --version 2>&1)"; \
		echo "Install one of them, or name it: make PYTHON=/path/to/python3.12"; exit 1; fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "$$python has no venv module. On Debian and Ubuntu: sudo apt install python3-venv"; exit 1; fi; \
	echo "[1/4] Making .venv with $$("$$python" --version) and putting uv into it"; \
	"$$python" -m venv --clear .venv && \
	$(VENV) -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' requirements.txt)"; fi
endef
