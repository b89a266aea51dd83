"""Grades submissions of an assignment: each question alone, in a process of its own, all else from the clean tree.

    make grade N=1 SUBMISSION=alice.zip [SEED=...] [RESULTS=...]     # an archive or a folder
    make grade N=1 SUBMISSION=folder-of-submissions                   # many: one CSV

The results are in Gradescope's format. The hidden cases come from a private seed; without SEED it is drawn once and
kept in out/grade/seed. A submission's process has no right values, and it is gone before its grade is written.
"""
import csv
import secrets
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]
from data import common
from data.common import replacing, write_json, write_text

import experiment
import fence
import hand_out
import tolerance
from runner import Runner
from table import Assignment, Question
from unpack import read_submission

SHARE_VISIBLE = 0.4  # of a question's points; the rest is for hidden cases


class Grader:
    """Grades submissions of one assignment with one private seed.

    reference: runs the clean tree. new_runner: makes the Runner for a question of a submission.
    """

    def __init__(self, assignment: Assignment, seed: int, reference: Runner, new_runner):
        self.assignment, self.seed, self.reference, self.new_runner = assignment, seed, reference, new_runner
        self.numbers = [f"{assignment.number}.{i}" for i in range(1, len(assignment.questions) + 1)]

    def grade(self, files: dict[str, bytes], others: list[str], path: Path) -> dict:
        """Gradescope's results, written to `path` after every question. others: names that are not read."""
        if not files:
            raise ValueError(f"the submission has none of {', '.join(self.assignment.files)}; "
                             "hand in what make submission wrote")
        output = tolerance.printable(f"Not read: {', '.join(others)}.") if others else ""
        results = {"output": output, "tests": []}
        for number, question in zip(self.numbers, self.assignment.questions):
            rows = self.experiment(question, files) if self.assignment.number == 5 else self.rows(question, files)
            results["tests"] += [row | {"number": number} for row in rows]
            write_json(path, results)
        return results

    def experiment(self, question: Question, files) -> list[dict]:
        wrong = getattr(experiment, f"check_{question.name}")(files)
        wrong = [said and tolerance.printable(said) for said in wrong]
        return [result_of(question.name, question.points, wrong, "visible")]

    def rows(self, question: Question, files) -> list[dict]:
        """The results of the visible and of the hidden cases, which run one after the other in one process.

        Hidden inputs come to the process when the visible values have gone from it, and of hidden cases nothing is
        shown but whether they are right. So no output that students see can hold a hidden input.
        """
        said = []
        with self.new_runner() as runner:
            for seed in (hand_out.VISIBLE, self.seed):
                cases = hand_out.cases_with_values(self.assignment, question, seed, self.reference)
                said.append(tolerance.marks(cases, self.run(question, files, cases, seed, runner), question.tolerance))
                if seed != hand_out.VISIBLE:
                    said[-1] = [text and f"{case['name']}: wrong" for case, text in zip(cases, said[-1])]
        points = question.points * SHARE_VISIBLE
        return [result_of(f"{question.name}, visible cases", points, said[0], "visible"),
                result_of(f"{question.name}, hidden cases", question.points - points, said[1], "after_published")]

    def run(self, question: Question, files, cases: list[dict], seed: int, runner: Runner) -> list[dict]:
        """The values of a submission: the clean tree with the question's functions stripped, and the submitted file."""
        file, all_names = question.file, self.assignment.functions(question.file)
        if file not in files:
            return [{"error": f"{file} is not in the submission, or is longer than a megabyte"}] * len(cases)
        code = hand_out.code(self.assignment, seed) | {
            file: hand_out.stripped(self.assignment, file, question.names), f"submission/{file}": files[file]}
        others = [name for name in all_names if name not in question.names]
        return runner.run(code, cases, {"file": file, "functions": question.names, "others": others})


def result_of(name: str, points: float, wrong: list[str | None], visibility: str) -> dict:
    """One of Gradescope's tests. wrong: for each case what is wrong with it, or None."""
    points, share = round(points, 2), wrong.count(None) / len(wrong)
    return {"name": name, "score": round(points * share, 2), "max_score": points,
            "status": "passed" if share == 1 else "failed", "output": "\n".join(tolerance.summary(wrong)),
            "visibility": visibility}


def show(results: dict):
    """A table for the terminal."""
    for row in results["tests"]:
        first, *more = row["output"].split("\n")
        print(f"{row['number']}  {row['name']:44} {row['score']:6.2f} of {row['max_score']:5.2f}   {first}")
        for line in more:
            print(f"        {line}")
    score, most = (sum(row[key] for row in results["tests"]) for key in ("score", "max_score"))
    print(f"{'':5}{'total':44} {score:6.2f} of {most:5.2f}")
    if results["output"]:
        print(results["output"])


def is_one(folder: Path, wanted: list[str]) -> bool:
    """Whether a folder is one submission, maybe within another folder, and not a folder of submissions."""
    inside = [path for path in folder.iterdir() if not path.name.startswith((".", "__"))]
    found = any((folder / name).exists() for file in wanted for name in (file, Path(file).name))
    return found or len(inside) == 1 and inside[0].is_dir()


def grade_many(grader: Grader, folder: Path, out: Path):
    """Grade everything in a folder: out/NAME.json for each, out/grades.csv for all."""
    names, rows = ["submission", "total", *grader.numbers, "problem"], []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        shown = tolerance.printable(path.name)
        row = {"submission": shown, "total": 0.0, "problem": ""}
        try:
            submission = read_submission(path, grader.assignment.files)
            for test in grader.grade(*submission, out / f"{path.name}.json")["tests"]:
                row[test["number"]] = row.get(test["number"], 0) + test["score"]
                row["total"] = round(row["total"] + test["score"], 2)
        except (ValueError, OSError) as error:
            row["problem"] = tolerance.printable(str(error))
        rows.append(row)
        print(f"{shown:30} {row['total']:6.2f}  {row['problem']}", flush=True)
        with replacing(out / "grades.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, restval=0)
            writer.writeheader()
            writer.writerows(rows)
    if not rows:
        raise ValueError(f"{folder} is empty; SUBMISSION is an archive, a folder, or a folder of submissions")
    print(f"wrote {out / 'grades.csv'} and a .json for each submission")


def private_seed(path: Path) -> int:
    """The seed that an instructor's machine keeps, drawn at the first use."""
    if not path.exists():
        write_text(path, f"{secrets.randbits(64) or 1}\n")
        print(f"drew a private seed and keeps it in {path}; the same hidden cases go to every submission")
    text = path.read_text().strip()
    if not text.isdecimal():
        raise ValueError(f"{path} holds no number; remove it, or give SEED=...")
    return int(text)


def main():
    parser = common.parser(__doc__)
    parser.add_argument("assignment", type=hand_out.number, metavar="N", help="the number of an assignment")
    parser.add_argument("submission", type=common.path, help="archive, folder, or folder of submissions")
    parser.add_argument("--seed", type=int, help="of the hidden cases, best of 64 bits; keep it to yourself")
    parser.add_argument("--results", type=common.path, default="out/grade/results.json", help="where the grades go")
    parser.add_argument("--seconds", type=common.positive(float), default=30, help="time limit of a question's cases")
    parser.add_argument("--unsafe", action="store_true", help="trust submissions where bubblewrap cannot work")
    args = parser.parse_args()
    if args.seed is not None and not 1 <= args.seed < 2**64:
        parser.error("--seed must be from 1 to 2**64 - 1; seed 0 is what the handout shows")
    if args.results.is_dir():
        parser.error(f"--results {args.results} is a folder; name a file")
    many = args.submission.is_dir() and not is_one(args.submission, args.assignment.files)
    submission = None if many else read_submission(args.submission, args.assignment.files)
    new_runner = None
    if args.assignment.number != 5:  # which runs nothing of the submission's
        new_runner, said = fence.for_submissions(args.unsafe, args.seconds)
        print(said, file=sys.stderr)
    seed = args.seed or private_seed(args.results.parent / "seed")
    with Runner() as reference:
        grader = Grader(args.assignment, seed, reference, new_runner)
        if many:
            return grade_many(grader, args.submission, args.results.parent)
        show(grader.grade(*submission, args.results))
    print(f"wrote {args.results}")


if __name__ == "__main__":
    common.run(main, interrupted="--results keeps the questions that were graded")
