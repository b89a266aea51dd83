"""Checks the functions you wrote against the visible cases, and packs the archive to hand in.

    make check              # or: python tests/check/check.py
    make submission         # or: python tests/check/check.py --submission
"""
import json
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT)]
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
    parser = common.parser(__doc__)
    parser.add_argument("--check", action="store_true", help="only check, as without an option")
    parser.add_argument("--submission", action="store_true", help="pack the archive to hand in")
    args = parser.parse_args()
    assignment = json.loads((HERE / "visible.json").read_bytes())
    with Runner() as runner:
        all_right = check(assignment, ROOT, runner)
    if args.submission:
        path = ROOT / f"assignment-{assignment['number']}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in assignment["hand in"]:
                archive.write(ROOT / file, file)
        left = "" if all_right else "; some visible cases are not right yet, but you may hand it in"
        print(f"wrote {path.name} with {', '.join(assignment['hand in'])}: hand in this file{left}")
    elif not all_right:
        sys.exit(1)


if __name__ == "__main__":
    common.run(main)
