# One command for everything; `make` alone prints what there is. Needs GNU make, git and a Python of 3.11 to 3.14, nothing else.

SHELL := /bin/sh
MAKEFLAGS += --no-builtin-rules --no-print-directory
.SUFFIXES:
.NOTPARALLEL:
.DEFAULT_GOAL := help

# ---- the dials -------------------------------------------------------------------------------------------------------------

SCALE ?= cpu##         smoke (seconds) | cpu (minutes, no GPU) | photos (yours) | evening (one GPU, hours) | paper (GPU hours to days)
SEEDS ?=##             seeds instead of the preset's, as in SEEDS="0 1 2 3"
ARGS ?=##              further options of train and evaluate, as in ARGS="--attack.eps 2/255"
DATA_ROOT ?=##         folder with the images (SCALE=photos, evening and paper)
BUDGET ?=##            minutes in all; what the plan leaves of them goes to open claims, cheapest first: more pictures, more seeds
RESULTS ?= results##   where measurements and checkpoints go
SET ?=##               parameters of the notebook, as in SET="name=value name=value"
DEVICE ?=##            cpus (a process per core) | cpu | cpu2 | gpu | gpus (a process each); gpu where one is seen, else cpus
GPU ?= measure##       of make plan: some of a100-80,h200,rtx4090,rtx3090,cpu2, or measure: the machine that it runs on
GPUS ?=##              how many with DEVICE=gpus; all by default
LAUNCH ?=##            what starts a script instead, as in LAUNCH="srun accelerate launch" (shared/experiment/launch/README.md)
PYTHON ?=##            the Python that makes .venv; by default the newest of 3.11 to 3.14 that is there
TORCH ?=##             cpu: no CUDA libraries, 1.5 GB instead of 6 (README: from where)
VENV ?= .venv##        another environment with the same pins, as in VENV="$CONDA_PREFIX"
DEFENCE ?=##           module:name of a defence of your own, a row in every table of diffcap, distshift or rvpt (docs/yours.md)
OBJECTIVE ?=##         the same for an objective of fine-tuning (pmg_aft)
METHOD ?=##            the same for a way to train CLIP (roclip)
NAME ?=##              of the paper that `make new-paper` begins
SURE ?=##              yes: `make clean-results` may delete

# The text of a variable's help ends its line, so the blanks before it would belong to the value.
KNOBS := SCALE SEEDS ARGS DATA_ROOT BUDGET RESULTS SET DEVICE GPU GPUS LAUNCH PYTHON TORCH VENV DEFENCE OBJECTIVE METHOD NAME SURE
$(foreach v,$(KNOBS),$(if $(filter file,$(origin $v)),$(eval $v := $(strip $(value $v)))))

PAPERS := $(patsubst papers/%/train.py,%,$(sort $(wildcard papers/*/train.py)))

# ---- mistakes, one sentence each -------------------------------------------------------------------------------------------

GIVEN   := $(foreach v,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $v))),$(filter-out -%,$v)))
UNKNOWN := $(filter-out $(KNOBS) MAKEFLAGS SHELL,$(GIVEN))
$(if $(UNKNOWN),$(error there is no variable $(firstword $(UNKNOWN)); make knows $(KNOBS)))

# ---- the pieces of a command -----------------------------------------------------------------------------------------------

quote = '$(subst ','\'',$1)'
PY    = $(call quote,$(VENV))/bin/python
# The newest that fits; pyenv's stand-in for a version that is not active does not even start.
fits = import sys, venv, ensurepip; sys.exit(not ((3, 11) <= sys.version_info < (3, 15) and sys.implementation.name == "cpython"))
with_python = for p in $(if $(PYTHON),$(call quote,$(PYTHON)),python3.14 python3.13 python3.12 python3.11 python3 python $(PY)); do \
    "$$p" -c '$(fits)' 2>/dev/null && exec "$$p" $1; done; \
    echo "$(if $(PYTHON),PYTHON=$(PYTHON) is,there is) no Python of 3.11 to 3.14 with its venv module (on Debian: python3-venv):" \
    "install one, or name it with PYTHON=/path/to/python3" >&2; exit 2
cores       = $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
dials      := $(foreach v,$(filter-out PYTHON VENV SURE,$(KNOBS)),$(call quote,$v=$($v)))
do          = @$(PY) -m shared.experiment.make $1 $(dials)
launch      = $(or $(LAUNCH),$(PY) -m shared.experiment.launch$(if $(DEVICE), --device $(DEVICE))$(if $(GPUS), --gpus $(GPUS)))

# Before anything is installed; without any Python, `make setup` has something else to say.
check       = -m shared.experiment.make check $(dials)
mistake    := $(shell { $(PY) $(check) || python3 $(check); } 2>/dev/null)
$(if $(mistake),$(error $(mistake)))

export PYTHONUNBUFFERED := 1
# Some machines forbid Python to keep its byte code. Then each of the many processes would compile torch and open_clip anew, ten seconds every time.
unexport PYTHONDONTWRITEBYTECODE
export DO_NOT_TRACK := 1
export HF_HUB_DISABLE_TELEMETRY := 1
ifneq ($(SCALE),paper)
# Only the paper scale downloads models, so everywhere else a script that tries to is wrong.
export HF_HUB_OFFLINE := 1
endif

# ---- targets ---------------------------------------------------------------------------------------------------------------

.PHONY: help setup lock reproduce headline overview status plan new-paper record docs test lint smoke test-slow test-pages test-image test-cpus bench zoo doctor clean-results FORCE

# LC_ALL=C: in Turkish, i is not between a and z.
help: ## this text
	@echo "make TARGET [VARIABLE=value …]"
	@echo
	@LC_ALL=C sed -n 's/^\([a-z][a-zA-Z<>-]*\):[^#]*## \(.*\)/  \1|\2/p; s/^#> \([^ ]*\) *## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-24s %s\n", $$1, $$2}'
	@echo
	@LC_ALL=C sed -n 's/^\([A-Z_]*\) ?= *\([^ #]*\)## *\(.*\)/  \1=\2#\3/p' Makefile | awk -F'#' '{printf "%-24s %s\n", $$1, $$2}'
	@echo
	@echo "papers here: $(or $(PAPERS),none yet)"

# What stands there is looked at each time (0.2 s), since an environment can be broken later: a package removed, the interpreter
# under it upgraded, the lock changed.
setup: environment ## make .venv with the exact packages of requirements.lock (minutes once, then nothing)
	@echo $(call quote,$(VENV) is as requirements.lock says)
asked = $(if $(filter setup,$(MAKECMDGOALS)),$(PYTHON)$(TORCH))
.PHONY: environment
environment:
	@$(if $(asked),,$(PY) -m shared.setup.pins >/dev/null 2>&1 ||) { $(call with_python,-m shared.setup.install --venv $(call quote,$(VENV))$(if $(TORCH), --torch $(TORCH))$(if $(PYTHON), --this-python)); }

lock: ## resolve pyproject.toml into requirements.lock for every Python and platform (needs uv); what still fits is kept
	@uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --extra test --no-annotate --custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

reproduce: environment ## every paper that has this SCALE: train, evaluate, its tables, figures, claims and page; then the overview
	$(call do,$@)

headline: environment ## only what the claims of the abstracts need; a later `make reproduce` continues from it
	$(call do,$@)

overview: environment ## the page with all claims of all papers at one SCALE, from the measurements that are there
	$(call do,$@)

plan: environment ## what this SCALE would take on GPU=…: FLOPs, memory, disk, hours; needs no GPU, weights or data
	$(call do,$@)

status: environment ## what is measured at this SCALE, what is missing, and what the rest would take; measures nothing
	$(call do,$@)

new-paper: environment ## a small working paper to begin with: papers/NAME and its test (docs/yours.md)
	$(call do,$@)

record: environment ## publish what finished runs of all papers drew as the record in figures/ and the READMEs; refuses what is partial
	$(call do,$@)

#> reproduce-<paper>      ## one paper; run again, it continues where it was interrupted and skips what is measured
#> headline-<paper>       ## the same for what the claims of its abstract need
#> figures-<paper>        ## redraw tables, figures and page from the measurements alone; loads no model
#> status-<paper>         ## what is measured of one paper
#> plan-<paper>           ## what one paper would take
#> bench-<paper>          ## its part of `make bench`, if it has one
#> record-<paper>         ## publish one paper's
reproduce-% headline-% figures-% status-% plan-% bench-% record-%: environment FORCE
	$(call do,$@)

docs: environment ## the page of the public names, docs/api/vlm_robust.html, from their docstrings
	@$(PY) -m pdoc --no-show-source --template-directory docs/template --output-directory docs/api vlm_robust

# A process per core, at most four (each imports torch), and the files in the order in which they stand: those of papers take longest and come first,
# where xdist would begin with the files of most tests. A file stays whole, so what its tests share is made once. ARGS="-n 0" for one process.
workers = $(if $(filter 1,$(cores))$(findstring no:xdist,$(ARGS)),,-n $(if $(filter 2 3,$(cores)),$(cores),4) --dist loadfile --no-loadscope-reorder)

# pytest comes last, so that its closing line is the last line.
test: lint smoke ## ruff, the import rules, one paper at SCALE=smoke, a few tests as another CPU, and every test that is not slow
	@$(if $(ARGS),,$(PY) -m tests.cpus --quick $(workers))
	@$(PY) -m pytest -m "not slow and not bench" $(workers) $(ARGS)

lint: environment ## ruff, the import rules and the types of the public names alone (half a minute, then seconds)
	@$(PY) -m ruff check .
	@$(PY) -c "from importlinter.cli import lint_imports_command as main; main()" --no-logo
	@$(PY) -m mypy

smoke: environment ## one paper end to end at SCALE=smoke, in a temporary folder (under a minute)
	$(call do,$@)

test-slow: environment ## the slow tests, among them the rehearsal of SCALE=paper, and `make test` in other surroundings
	@$(if $(ARGS),,tests/machines.sh $(call quote,$(VENV)))
	@$(PY) -m pytest -m slow $(ARGS)

# What drives the browser is no package of Python: npm fetches it into a folder that goes again.
test-pages: environment ## the pages in a real browser, at three widths, light and dark (needs chromium and npm; minutes)
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	npm install --silent --no-save --prefix "$$folder" playwright-core@1.65 axe-core@4.14 >/dev/null && \
	NODE_PATH="$$folder/node_modules" $(PY) -m pytest tests/test_pages.py $(ARGS)

test-image: environment ## the steps of the Dockerfile as a script, and `pip install .` (needs the network; minutes, 7 GB)
	@$(PY) -m tests.image $(ARGS)

test-cpus: environment ## the tests that compare floats as other CPUs would run them: no vectors, AVX2, AVX-512, 1 to 4 threads (an hour)
	@$(PY) -m tests.cpus $(workers) $(ARGS)

bench: environment ## speeds against plain loops and reference packages, side by side, with their spread
	$(call do,$@)

zoo: environment ## train the shipped small models again (over an hour on 2 cores)
	$(launch) -m shared.training.pretrain $(ARGS)
	$(launch) -m shared.training.pretrain --out shared/models/zoo/scenes-vit-xs8.safetensors --model scenes-vit-xs8 --seed 1 --train.steps 2400 $(ARGS)
	$(launch) -m shared.training.pretrain --out shared/models/zoo/scenes-vit-d8.safetensors --model scenes-vit-d8 --seed 2 --train.steps 1500 $(ARGS)
	$(launch) -m shared.training.denoising $(ARGS)
	$(launch) -m shared.training.classify --data scenes:ten --out shared/models/zoo/scenes-ten-resnet8.safetensors $(ARGS)
	$(launch) -m shared.training.classify --data scenes:ten --train.eps 8/255 --out shared/models/zoo/scenes-ten-resnet8-at.safetensors $(ARGS)
	$(launch) -m shared.training.classify --data scenes:thirty --out shared/models/zoo/scenes-thirty-resnet8.safetensors $(ARGS)
	$(launch) -m shared.training.classify --data scenes:thirty --train.eps 8/255 --out shared/models/zoo/scenes-thirty-resnet8-at.safetensors $(ARGS)
	$(launch) -m shared.training.vlm --model scenes-llava --out shared/models/zoo/scenes-llava.safetensors $(ARGS)
	$(launch) -m shared.training.vlm --model scenes-idefics --out shared/models/zoo/scenes-idefics.safetensors $(ARGS)
	$(launch) -m shared.training.steganography $(ARGS)

doctor = -m shared.setup.doctor --results $(call quote,$(RESULTS))
doctor: ## what is wrong with this machine, in plain words
	@[ ! -x $(PY) ] || exec $(PY) $(doctor); $(call with_python,$(doctor))

clean-results: ## delete the results of one SCALE (asks for SURE=yes)
	@folder=$(call quote,$(RESULTS)/$(SCALE)); \
	if [ ! -d "$$folder" ]; then echo "there is nothing at $$folder"; \
	elif [ "$(SURE)" != yes ]; then echo "this deletes $$(du -sh "$$folder" | cut -f1) in $$folder: run it again with SURE=yes" >&2; exit 2; \
	else rm -rf "$$folder" && echo "deleted $$folder"; fi

FORCE:
