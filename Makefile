# `make help` lists the targets and variables. Without PYTHON=..., the first command that needs Python sets up .venv.
PYTHON ?= .venv/bin/python
METHOD ?= response
MODEL ?= data/tiny
DATA ?= data/world
SEED ?= 1
RULES ?= none
A ?= out/response
B ?= out/instruction
JUDGE ?= world
variables := PYTHON METHOD MODEL DATA OUT SEED EPOCHS OVERWRITE RULES PROMPT A B JUDGE BASE_URL WORKERS N SUBMISSION \
	SOLUTION RESULTS UNSAFE Q
seed_given := $(filter-out file,$(origin SEED))

given := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
$(foreach name,$(filter-out $(variables),$(given)),$(error $(name) is no variable of this project; its variables are \
	$(variables)))

# A value is text, letter for letter: make expands nothing in it, and recipes read it as "$$NAME" from the environment.
$(foreach name,$(filter-out OUT,$(variables)),$(eval override $(name) := $$(value $(name))))
ifeq ($(origin OUT),undefined)
OUT := out/$(if $(filter assignment,$(MAKECMDGOALS)),assignment-$(N),$(METHOD))
else
override OUT := $(value OUT)
endif
# out/eval/DATA/MODEL/RULES.json, where a path's steps upwards and its beginning at the root become folders
answers = $(subst ..,up,$(subst //,/root/,out/eval/$(DATA)/$1/$2.json))
ANSWERS := $(call answers,$(MODEL),$(RULES))
ANSWERS_A := $(call answers,$(A),$(RULES))
ANSWERS_B := $(call answers,$(B),none)
export $(variables) ANSWERS ANSWERS_A ANSWERS_B

ready := $(if $(filter .venv/bin/python,$(PYTHON)),.venv/ready)
world := $(if $(filter data/world data/world/,$(DATA)),data/world/eval.jsonl)
resume := $(if $(filter 1,$(OVERWRITE)),--overwrite,--resume)

define help
make TARGET [VARIABLE=value ...]

  train       train MODEL by METHOD, write OUT, show nine answers before and after
  generate    answer PROMPT with MODEL, under RULES
  eval        answer the eval set with MODEL, under RULES, and grade the answers
  judge       compare A's answers, under RULES, with B's, under none
  rank        how often MODEL, A and B find the right response likelier than another text
  table       the paper's tables in vitro, about 15 minutes
  sweep       win rates where pretraining answers more or less, about 26 minutes
  lab         the questions that the paper leaves open; Q=tags answers one by experiment
  pretrain    make data/tiny again, or out/base-SEED of another world, about 20 minutes
  data        fetch the paper's datasets into data/paper
  bench       speed and memory on this machine
  test        run the tests
  assignment  write the handout of assignment N into OUT; SOLUTION=1 shows its solution
  grade       grade SUBMISSION, an archive or a folder of one or many; SEED is private

  METHOD=$(METHOD)   or instruction, mbpp, gsm, poetry, recipes, chess
  MODEL=$(MODEL)   a folder, or ORG/NAME on the hub
  DATA=$(DATA)   a folder of training and eval sets
  OUT=$(OUT)   OVERWRITE=1 discards the run that it holds
  SEED=$(SEED)   EPOCHS=$(or $(EPOCHS),the method's own)
  PROMPT="What is the capital of Brabrol?"
  RULES=$(RULES)   or all, or some of eos,tokens,repeats
  A=$(A)   B=$(B)   trained first, if they are missing
  JUDGE=$(JUDGE)   or a model on the server at BASE_URL; WORKERS=1 for a slow server
  N=1   SUBMISSION=alice.zip   RESULTS=out/grade/results.json   UNSAFE=1 without a fence
  PYTHON=$(PYTHON)   set up by the first command

Without make: .venv/bin/python train.py --help
endef

help:
	@:$(info $(help))

train: $(ready) $(world)
	@set -x; $(PYTHON) train.py --method "$$METHOD" --model "$$MODEL" --data "$$DATA" --out "$$OUT" --seed "$$SEED" \
		$${EPOCHS:+--epochs "$$EPOCHS"} $(resume)
	@$(PYTHON) generate.py --model "$$MODEL" "$$OUT" --input "$$DATA/eval.jsonl" --limit 9 --max-new-tokens 40

ifneq ($(filter generate,$(MAKECMDGOALS)),)
$(if $(PROMPT),,$(error ask something, for example: make generate PROMPT="What is the capital of Brabrol?"))
endif
generate: $(ready)
	@$(PYTHON) generate.py --model "$$MODEL" --rules "$$RULES" --prompt="$$PROMPT"

eval: $(ready) $(world)
	@$(PYTHON) generate.py --model "$$MODEL" --rules "$$RULES" --input "$$DATA/eval.jsonl" --output "$$ANSWERS"
	@[ ! -e "$$DATA/world.json" ] || $(PYTHON) data/answer_key.py "$$ANSWERS" --data "$$DATA"

# the models that judge and rank need: a missing one is trained first where its name and the defaults say how
tuned := $(patsubst %,out/%/run.json,instruction response mbpp gsm poetry recipes chess)
ifeq ($(MODEL) $(DATA),data/tiny data/world)
missing := $(filter $(tuned),$(addsuffix /run.json,$(A) $(B)))
endif
$(tuned): out/%/run.json: | $(ready) $(world)
	@echo "$(@D) is not there yet; training it takes about a minute on two cores"
	$(PYTHON) train.py --method $* --out $(@D) --resume

# before anything is trained: are the two models there, or about to be, and are they two?
compared:
	@for model in "$$A" "$$B"; do case "$$model" in out/*) [ -e "$$model" ] || case ' $(missing) ' in \
		*" $$model/run.json "*) ;; \
		*) printf '%s does not exist; make train METHOD=... OUT=%s trains it\n' "$$model" "$$model" >&2; exit 2;; \
		esac;; esac; done
	@[ "$$ANSWERS_A" != "$$ANSWERS_B" ] || { echo 'A and B are the same model; choose another A=... or B=...' >&2; exit 2; }

# generate.py keeps beside its answers a record of their model, data and settings, and decodes anew where that differs
judge: compared $(ready) $(world) $(missing)
	@$(PYTHON) generate.py --model "$$A" --rules "$$RULES" --input "$$DATA/eval.jsonl" --output "$$ANSWERS_A"
	@$(PYTHON) generate.py --model "$$B" --input "$$DATA/eval.jsonl" --output "$$ANSWERS_B"
	@$(PYTHON) judge.py --outputs "$$ANSWERS_A" --reference "$$ANSWERS_B" --judge "$$JUDGE" --data "$$DATA" \
		$${BASE_URL:+--base-url "$$BASE_URL"} $${WORKERS:+--workers "$$WORKERS"}

rank: compared $(ready) $(world) $(missing)
	@$(PYTHON) judge.py --rank "$$MODEL" "$$B" "$$A" --pairs "$$DATA/eval.jsonl"

table: $(ready) $(world)
	@$(PYTHON) tests/paper.py table --model "$$MODEL" --data "$$DATA"

sweep: $(ready)
	@$(PYTHON) tests/paper.py sweep

lab: $(ready)
	@$(PYTHON) tests/lab $${Q:+"$$Q"}

# two threads, so that the bytes do not depend on how many there are; another seed makes another world and its base
pretrain: $(ready)
	$(PYTHON) data/world.py --seed "$$SEED" --out "out/world-$$SEED" --corpus 80000
	OMP_NUM_THREADS=2 $(PYTHON) train.py --method pretrain --data "out/world-$$SEED" --out "out/base-$$SEED" \
		--seed "$$SEED" --batch-size 32 $(resume)
	test "$$SEED" != 1 || cp out/base-1/model.safetensors out/base-1/tokenizer.json data/tiny/

data: $(ready)
	$(PYTHON) data/sources.py data/paper

bench: $(ready)
	@$(PYTHON) tests/bench.py --model "$$MODEL"

test: $(ready)
	$(PYTHON) -m pytest -q -rs tests

# an instructor's two commands, see tests/assignments/README.md
ifneq ($(filter assignment grade,$(MAKECMDGOALS)),)
$(if $(N),,$(error say which assignment, for example: make $(firstword $(MAKECMDGOALS)) N=1))
endif
ifneq ($(filter grade,$(MAKECMDGOALS)),)
$(if $(SUBMISSION),,$(error say what to grade, for example: make grade N=1 SUBMISSION=alice.zip))
endif
assignment: $(ready)
	@$(PYTHON) tests/assignments/hand_out.py $(if $(filter 1,$(SOLUTION)),--solution,--out "$$OUT") -- "$$N"

grade: $(ready)
	@$(PYTHON) tests/assignments/grade.py $(if $(filter 1,$(UNSAFE)),--unsafe) $(if $(seed_given),--seed "$$SEED") \
		$${RESULTS:+--results "$$RESULTS"} -- "$$N" "$$SUBMISSION"

data/world: data/world/eval.jsonl
data/world/eval.jsonl: data/world.py | $(ready)
	$(PYTHON) data/world.py

.venv/ready: requirements.txt
	@command -v python3 >/dev/null || { echo 'there is no python3; install Python 3.11 or newer' >&2; exit 2; }
	@python3 -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
		"python3 is Python " + sys.version.split()[0] + "; install 3.11 or newer")'
	@python3 -c 'import ensurepip, venv' 2>/dev/null || { \
		echo 'python3 cannot make a virtual environment; install its venv module (Debian: python3-venv)' >&2; exit 2; }
	@[ "$$(uname)" != Linux ] || [ -n "$$PIP_EXTRA_INDEX_URL$$PIP_INDEX_URL" ] || echo 'pip downloads 2.2 GB now (4.8 GB' \
		'on disk), since PyTorch for Linux comes with CUDA. Without an NVIDIA GPU, press Ctrl-C and give make the' \
		'index of CPU builds that "Get started" on the page of PyTorch names:' \
		'PIP_EXTRA_INDEX_URL=... make train METHOD=response'
	python3 -m venv .venv
	.venv/bin/pip install --quiet --requirement requirements.txt
	@touch $@

.PHONY: help train generate eval compared judge rank table sweep lab pretrain data bench test assignment grade
.DELETE_ON_ERROR:
