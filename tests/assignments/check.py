"""Checks the functions you wrote against the visible cases, and packs the archive to hand in.

    make check              # or: python tests/check/check.py
    make submission         # or: python tests/check/check.py --submission
"""
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT)]
from data import common

import compare
import plain
import source
from run_cases import Runner


def check(assignment: dict, root: Path, runner: Runner) -> bool:
    """Run every question's visible cases and print what is wrong. Returns whether all are right."""
    not_right = []
    files = {path: (root / path).read_bytes() for path in assignment["code"]}
    files |= {path: text.encode() for path, text in assignment["files"].items()}
    for number, question in enumerate(assignment["questions"], 1):
        results, _ = runner.run(files, question["cases"])
        wrong = [said for said in compare.marks(question["cases"], results, question["tolerance"]) if said]
        n, first = len(results), [name for name in question["needs"] if name in not_right]
        print(f"{assignment['number']}.{number} {question['name']}: {n - len(wrong)} of {n} cases right"
              + f"; it calls {', '.join(first)}, not right yet" * bool(first), flush=True)
        for said in wrong[:5]:
            print(f"    {said}")
        if len(wrong) > 5:
            print(f"    and {len(wrong) - 5} more")
        not_right += [question["name"]] * bool(wrong)
    return not not_right


def check_files(assignment: dict, root: Path) -> list[str]:
    """The files to hand in. Raises ValueError where one is no Python, or where a function has other parameters."""
    files = list(dict.fromkeys(name.split(":")[0] for name in assignment["signatures"]))
    trees = {file: source.parse(file, (root / file).read_bytes()) for file in files}
    for name, expected in assignment["signatures"].items():
        file, function = name.split(":")
        found = source.signature(trees[file], function)
        if found != expected:
            raise ValueError(f"{file}: {function} must be there and take ({expected}), found "
                             f"{'no such function' if found is None else f'({found})'}; put its signature back")
    return files


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--submission", action="store_true", help="pack the archive to hand in")
    args = parser.parse_args()
    assignment = plain.loads((HERE / "visible.json").read_bytes())
    files = check_files(assignment, ROOT)
    with Runner() as runner:
        all_right = check(assignment, ROOT, runner)
    if args.submission:
        path = ROOT / f"assignment-{assignment['number']}.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(ROOT / file, file)
        left = "" if all_right else "; some visible cases are not right yet, but you may hand it in"
        print(f"wrote {path.name} with {', '.join(files)}: hand in this file{left}")
    elif not all_right:
        sys.exit(1)


if __name__ == "__main__":
    common.run(main)
