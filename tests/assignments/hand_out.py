"""Writes an assignment's handout: a folder that stands alone, with the named functions stripped.

    make assignment N=1 [OUT=...]       # or: python tests/assignments/hand_out.py 1 --out FOLDER
    make assignment N=1 SOLUTION=1      # the difference between the handout and the solution
"""
import argparse
import difflib
import json
import sys
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(ROOT)]
from data import common

import experiment
import source
from cases import cases_of, files_of
from runner import Runner, list_of
from table import ASSIGNMENTS, Assignment, Question

VISIBLE = 0  # the seed of the visible cases, in every handout and for every grader
CHECKERS = ("check.py", "runner.py", "worker.py", "calls.py", "tolerance.py")  # go with the handout

EXPERIMENT = "\nexperiment: $(ready)\n\t@$(PYTHON) tests/check/check.py\n"  # assignment 5 has this target, too


@cache
def clean_files(assignment: Assignment, hidden: bool = False) -> dict[str, bytes]:
    """The repository's files that an assignment has; with `hidden`, those that the grader adds."""
    paths = {path for pattern in assignment.keep + assignment.hidden * hidden for path in ROOT.glob(pattern)}
    return {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in sorted(paths)}


def code(assignment: Assignment, seed: int) -> dict[str, bytes]:
    """The folder in which cases run: the clean code, and the files that the cases of a seed read."""
    files = {path: data for path, data in clean_files(assignment, hidden=True).items()
             if path.endswith(".py") or path.startswith("tests/golden")}
    return files | files_of(assignment.number, seed)


@cache
def stripped(assignment: Assignment, file: str, functions: tuple[str, ...]) -> bytes:
    """A clean file without the bodies of some functions."""
    return source.strip(clean_files(assignment)[file].decode(), functions).encode()


@cache
def cases_with_values(assignment: Assignment, question: Question, seed: int, reference: Runner) -> list[dict]:
    """A question's cases, each with "right": the value on the clean tree. Raises RuntimeError where it has none."""
    cases = cases_of(question.name, seed)
    results = reference.run(code(assignment, seed), cases)
    for case, result in zip(cases, results):
        if "error" in result:
            raise RuntimeError(f"the reference fails {question.name}, {case['name']}: {result['error']}")
        case["right"] = result["value"]
    return cases


def starter(assignment: Assignment) -> dict[str, bytes]:
    """The repository's files with the named functions stripped."""
    return clean_files(assignment) | {file: stripped(assignment, file, assignment.functions(file))
                                      for file in assignment.files if file in clean_files(assignment)}


@cache
def handout(assignment: Assignment, reference: Runner) -> dict[str, bytes]:
    """The whole handout, {path: content}."""
    lines = ["| | write | points | |", "|---|---|---|---|"]
    for number, q in enumerate(assignment.questions, 1):
        names = ", ".join(f"`{name}`" for name in q.names)
        where = f"{names} in `{q.file}`" if q.names != ("",) else f"`{q.file}`"
        after = f"; uses {', '.join(q.needs)}" if q.needs else ""
        lines.append(f"| {assignment.number}.{number} | {where} | {q.points} | {q.about}{after} |")
    text = (HERE / f"{assignment.number}.md").read_text(encoding="utf-8").replace("{questions}", "\n".join(lines))
    files, makefile, check = starter(assignment), (HERE / "handout.mk").read_text(), "tests/check/check.py"
    if assignment.number == 5:
        makefile, check = makefile + EXPERIMENT, f"{check} --check"
        files["tests/check/check.py"] = (HERE / "experiment.py").read_bytes()
        files["prediction.md"] = experiment.TEMPLATE.encode()
    else:
        text += (HERE / "rules.md").read_text(encoding="utf-8")
        files |= {f"tests/check/{name}": (HERE / name).read_bytes() for name in CHECKERS}
        files["tests/check/visible.json"] = visible(assignment, reference).encode()
    makefile = makefile.format(check=check, archive=f"assignment-{assignment.number}.zip",
                               files=" ".join(assignment.files))
    return files | {"README.md": text.encode(), "Makefile": makefile.encode()}


def visible(assignment: Assignment, reference: Runner) -> str:
    """What `make check` reads: the questions, their visible cases with the values that are right, and their files."""
    clean, questions = clean_files(assignment), []
    for q in assignment.questions:
        questions.append({"name": q.name, "tolerance": q.tolerance, "needs": q.needs,
                          "cases": cases_with_values(assignment, q, VISIBLE, reference)})
    return json.dumps({
        "number": assignment.number, "questions": questions,
        "code": [path for path in clean if path.endswith(".py") or path.startswith("tests/golden")],
        "files": {path: data.decode() for path, data in files_of(assignment.number, VISIBLE).items()}}, default=list_of)


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
    with Runner() as reference:
        files = handout(args.assignment, reference)
    for path, data in files.items():
        (args.out / path).parent.mkdir(parents=True, exist_ok=True)
        (args.out / path).write_bytes(data)
    print(f"wrote {args.out}: assignment {args.assignment.number}, {args.assignment.title}, {len(files)} files; "
          "its README.md is the handout")


if __name__ == "__main__":
    common.run(main)
