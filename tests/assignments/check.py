"""Checks the functions you wrote against the visible cases: make check, or python tests/check/check.py."""
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]
from data import common

import tolerance
from runner import Runner


def check(assignment: dict, root: Path, runner: Runner) -> bool:
    """Run every question's visible cases and print what is wrong. Returns whether all are right."""
    not_right = []
    files = {path: (root / path).read_bytes() for path in assignment["code"]}
    files |= {path: text.encode() for path, text in assignment["files"].items()}
    for number, question in enumerate(assignment["questions"], 1):
        wrong = tolerance.marks(question["cases"], runner.run(files, question["cases"]), question["tolerance"])
        said, *more = tolerance.summary(wrong)
        first = [name for name in question["needs"] if name in not_right]
        print(f"{assignment['number']}.{number} {question['name']}: {said}"
              + f"; it calls {', '.join(first)}, not right yet" * bool(first), *more, sep="\n    ", flush=True)
        not_right += [question["name"]] * bool(more)
    return not not_right


def main():
    with Runner() as runner:
        if not check(json.loads((HERE / "visible.json").read_bytes()), HERE.parent.parent, runner):
            sys.exit(1)


if __name__ == "__main__":
    common.run(main)
