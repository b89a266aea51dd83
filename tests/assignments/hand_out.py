"""Writes an assignment's handout: a folder that stands alone, with the named functions stripped.

    make assignment N=1 [OUT=...]       # or: python tests/assignments/hand_out.py 1 --out FOLDER
    make assignment N=1 SOLUTION=1      # the difference between the handout and the solution
"""
import argparse
import difflib
import sys
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT)]
from data import common

import experiment
import plain
import source
from cases import cases_of, files_of
from run_cases import Runner
from table import ASSIGNMENTS, Assignment, Question

VISIBLE = 0  # the seed of the visible cases, in every handout and for every grader
CHECKERS = ("check.py", "run_cases.py", "calls.py", "compare.py", "plain.py", "source.py")  # go with the handout

MAKEFILE = """# make setup: an environment of Python, once.  make check: are the visible cases right?
# make submission: the archive to hand in, checked first.  PYTHON=python3 make ... takes your own environment.
PYTHON ?= .venv/bin/python
ready := $(if $(filter .venv/bin/python,$(PYTHON)),.venv/ready)

check: $(ready)
	@$(PYTHON) {check}

submission: $(ready)
	@$(PYTHON) {check} --submission
{more}
setup: .venv/ready

.venv/ready: requirements.txt
	python3 -m venv .venv
	.venv/bin/pip install --quiet --requirement requirements.txt
	@touch $@

.PHONY: check submission setup {targets}
"""


@cache
def clean_files(assignment: Assignment, hidden: bool = False) -> dict[str, bytes]:
    """The repository's files that an assignment has; with `hidden`, those that the grader adds."""
    paths = {path for pattern in assignment.keep + assignment.hidden * hidden for path in ROOT.glob(pattern)}
    return {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in sorted(paths)}


def code(assignment: Assignment, *seeds: int) -> dict[str, bytes]:
    """The folder in which cases run: the clean code, and the files that the cases of these seeds read."""
    files = {path: data for path, data in clean_files(assignment, hidden=True).items()
             if path.endswith(".py") or path.startswith("tests/golden")}
    for seed in seeds:
        files |= files_of(assignment.number, seed)
    return files


@cache
def cases_with_values(assignment: Assignment, question: Question, seed: int, runner: Runner) -> list[dict]:
    """A question's cases, each with "right": the value on the clean tree. Raises RuntimeError where it has none."""
    cases = cases_of(question.name, seed)
    results, _ = runner.run(code(assignment, seed), cases)
    for case, result in zip(cases, results):
        if "error" in result:
            raise RuntimeError(f"the reference fails {question.name}, {case['name']}: {result['error']}")
    return [case | {"right": result["value"]} for case, result in zip(cases, results)]


def starter(assignment: Assignment) -> dict[str, bytes]:
    """The repository's files with the named functions stripped."""
    files = dict(clean_files(assignment))
    for file in assignment.files:
        if file in files:
            files[file] = source.strip(files[file].decode(), assignment.functions(file)).encode()
    return files


@cache
def handout(assignment: Assignment, runner: Runner) -> dict[str, bytes]:
    """The whole handout, {path: content}."""
    files, lines = starter(assignment), ["| | write | points | |", "|---|---|---|---|"]
    for number, q in enumerate(assignment.questions, 1):
        name = q.functions[0].replace(":", ", ").removesuffix(", ")
        after = f"; uses {', '.join(q.needs)}" if q.needs else ""
        lines.append(f"| {assignment.number}.{number} | `{name}` | {q.points} | {q.about}{after} |")
    text = (HERE / f"{assignment.number}.md").read_text(encoding="utf-8").replace("{questions}", "\n".join(lines))
    text += (HERE / "rules.md").read_text(encoding="utf-8") if assignment.number != 5 else ""
    is_experiment = assignment.number == 5
    more = "\nexperiment: $(ready)\n\t@$(PYTHON) tests/check/experiment.py\n" if is_experiment else ""
    check = "tests/check/experiment.py --check" if is_experiment else "tests/check/check.py"
    files |= {"README.md": text.encode(), "Makefile": MAKEFILE.format(
        check=check, more=more, targets="experiment" * is_experiment).encode()}
    if is_experiment:
        return files | {"tests/check/experiment.py": (HERE / "experiment.py").read_bytes(),
                        "prediction.md": experiment.TEMPLATE.encode()}
    files |= {f"tests/check/{name}": (HERE / name).read_bytes() for name in CHECKERS}
    return files | {"tests/check/visible.json": visible(assignment, runner).encode()}


def visible(assignment: Assignment, runner: Runner) -> str:
    """What `make check` reads: the questions, their visible cases with the values that are right, and their files."""
    files, trees = clean_files(assignment), {}
    for path in assignment.files:
        trees[path] = source.parse(path, files[path])
    return plain.dumps({
        "number": assignment.number,
        "code": [path for path in files if path.endswith(".py") or path.startswith("tests/golden")],
        "files": {path: data.decode() for path, data in files_of(assignment.number, VISIBLE).items()},
        "signatures": {f: source.signature(trees[f.split(":")[0]], f.split(":")[1])
                       for q in assignment.questions for f in q.functions[:1]},
        "questions": [{"name": q.name, "tolerance": q.tolerance, "function": q.functions[0], "needs": list(q.needs),
                       "cases": cases_with_values(assignment, q, VISIBLE, runner)} for q in assignment.questions]})


def solution(assignment: Assignment) -> str:
    """The difference between the starter and the solution, as `diff -u` shows it."""
    before, after, lines = starter(assignment), clean_files(assignment), []
    for file in filter(after.get, assignment.files):
        lines += difflib.unified_diff(*(files[file].decode().splitlines(keepends=True) for files in (before, after)),
                                      f"starter/{file}", f"solution/{file}")
    return "".join(lines)


def number(text: str) -> Assignment:
    """A type for argparse: the number of an assignment."""
    if text not in map(str, ASSIGNMENTS):
        raise argparse.ArgumentTypeError(f"{text!r} is no assignment; they are {', '.join(map(str, ASSIGNMENTS))}")
    return ASSIGNMENTS[int(text)]


def main():
    parser = common.parser(__doc__)
    parser.add_argument("assignment", type=number, metavar="N", help="the number of an assignment")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=common.path, help="folder to write")
    what.add_argument("--solution", action="store_true", help="print the difference to the solution")
    args = parser.parse_args()
    if args.solution:
        if args.assignment.number == 5:
            raise ValueError("assignment 5 strips nothing, so there is no solution to show; README.md has its rubric")
        return print(solution(args.assignment), end="")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ValueError(f"{args.out} is not an empty folder; remove it, or choose another with OUT=...")
    with Runner() as runner:
        files = handout(args.assignment, runner)
    for path, data in files.items():
        (args.out / path).parent.mkdir(parents=True, exist_ok=True)
        (args.out / path).write_bytes(data)
    print(f"wrote {args.out}: assignment {args.assignment.number}, {args.assignment.title}, {len(files)} files; "
          "its README.md is the handout")


if __name__ == "__main__":
    common.run(main)
