# make setup: an environment of Python, once.  make check: are the visible cases right?
# make submission: the archive to hand in, checked first.  PYTHON=python3 make ... takes your own environment.
PYTHON ?= .venv/bin/python
ready := $(if $(filter .venv/bin/python,$(PYTHON)),.venv/ready)

check: $(ready)
	@$(PYTHON) {check}

submission: $(ready)
	@$(PYTHON) {check} || echo 'not all is right yet, but you may hand it in'
	@$(PYTHON) -m zipfile -c {archive} {files}
	@echo 'wrote {archive} with {files}: hand in this file'

setup: .venv/ready

.venv/ready: requirements.txt
	python3 -m venv .venv
	.venv/bin/pip install --quiet --requirement requirements.txt
	@touch $@

.PHONY: check submission setup experiment
