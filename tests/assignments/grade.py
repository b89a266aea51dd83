"""Grades submissions of an assignment: each question alone, in a fenced process, everything else from the clean tree.

    make grade N=1 SUBMISSION=alice.zip [SEED=...] [RESULTS=...]     # an archive or a folder
    make grade N=1 SUBMISSION=folder-of-submissions                   # many: one CSV

The results are in Gradescope's format. The hidden cases come from a private seed; without SEED it is drawn once and
kept in out/grade/seed.
"""
import csv
import secrets
import sys
import tarfile
import time
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]
from data import common
from data.common import replacing, write_json, write_text

import compare
import experiment
import hand_out
import source
from run_cases import Runner
from table import Assignment, Question

SHARE_VISIBLE = 0.4  # of a question's points; the rest is for hidden cases
MOST_BYTES, MOST_FILES = 1 << 20, 5000  # of one file of a submission; of a submission


def read_submission(path: Path) -> dict[str, bytes]:
    """The files of an archive or folder, {name: content}: no links, nothing large, nothing unpacked to disk.

    Raises ValueError where it is neither, FileNotFoundError where it is not there.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; SUBMISSION is an archive or a folder")
    if path.is_dir():
        found = (each for each in sorted(path.rglob("*")) if each.is_file() and not each.is_symlink())
        members = ((each.relative_to(path).as_posix(), each.stat().st_size, each.read_bytes) for each in found)
        return keep(members)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return keep((info.filename, info.file_size, lambda info=info: archive.open(info).read(MOST_BYTES + 1))
                            for info in archive.infolist() if not info.is_dir())
        with tarfile.open(path) as archive:
            return keep((info.name, info.size, lambda info=info: archive.extractfile(info).read(MOST_BYTES + 1))
                        for info in archive if info.isfile())
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError, OSError, ValueError,
            ArithmeticError, LookupError) as error:
        kind = " ".join(str(error).split())[:100] or type(error).__name__
        raise ValueError(f"{path} is no archive ({kind}); hand in what make submission wrote") from None


def keep(members) -> dict[str, bytes]:
    files = {}
    for name, size, read in members:
        name = name.replace("\\", "/").removeprefix("./")
        hidden = any(part.startswith((".", "__")) for part in name.split("/"))
        if not hidden and size <= MOST_BYTES and len(files) < MOST_FILES:
            files[name] = read()
    return files


def locate(files: dict[str, bytes], wanted: list[str]) -> dict[str, bytes]:
    """A submission's files under their own names: without the folders around them, whatever these are called."""
    roots = {name.removesuffix(file) for file in wanted for name in files if f"/{name}".endswith(f"/{file}")} or {""}
    root = max(roots, key=lambda root: (sum(root + file in files for file in wanted), -root.count("/")))
    found = {name.removeprefix(root): data for name, data in files.items() if name.startswith(root)}
    for file in wanted:  # handed in one by one, without folders
        if file not in found and Path(file).name in found:
            found[file] = found.pop(Path(file).name)
    return found


class Grader:
    """Grades submissions of one assignment with one private seed."""

    def __init__(self, assignment: Assignment, seed: int, runner: Runner):
        self.assignment, self.seed, self.runner = assignment, seed, runner
        self.seen = {}  # {the code that ran: what was wrong}

    def grade(self, submission: dict[str, bytes], path: Path) -> dict:
        """Gradescope's results; written to `path` after every question."""
        wanted, began = self.assignment.files, time.perf_counter()
        files = locate(submission, wanted)
        if not any(file in files for file in wanted):
            raise ValueError(f"the submission has none of {', '.join(wanted)}; hand in what make submission wrote")
        results = {"execution_time": 0.0, "output": self.ignored(files), "tests": []}
        for number, question in enumerate(self.assignment.questions, 1):
            for row in (self.visible_and_hidden if self.assignment.number != 5 else self.done_again)(question, files):
                results["tests"].append(row | {"number": f"{self.assignment.number}.{number}"})
            results["execution_time"] = round(time.perf_counter() - began, 2)
            write_json(path, results)
        return results

    def visible_and_hidden(self, question: Question, files):
        file = question.functions[0].split(":")[0]
        parts = [hand_out.cases_with_values(self.assignment, question, seed, self.runner)
                 for seed in (hand_out.VISIBLE, self.seed)]
        try:
            spliced = self.spliced(question, file, files)
            if (question, spliced[file]) not in self.seen:
                code = hand_out.code(self.assignment, hand_out.VISIBLE, self.seed)
                results, _ = self.runner.run(code | spliced, sum(parts, []))
                self.seen[question, spliced[file]] = compare.marks(sum(parts, []), results, question.tolerance)
            wrong = self.seen[question, spliced[file]]
        except (ValueError, LookupError, RecursionError) as error:
            wrong = [str(error.args[0])] * len(sum(parts, []))
        n, share = len(parts[0]), SHARE_VISIBLE
        yield result_of(f"{question.name}, visible cases", question.points * share, wrong[:n], True)
        yield result_of(f"{question.name}, hidden cases", question.points * (1 - share), wrong[n:], False)

    def spliced(self, question: Question, file: str, files) -> dict[str, bytes]:
        if file not in files:
            raise LookupError(f"{file} is not in the submission")
        tree = source.parse(file, files[file])
        names = [function.split(":")[1] for function in question.functions]
        names = names[:1] + [name for name in names[1:] if source.find(tree, name)]
        clean = hand_out.clean_files(self.assignment)[file].decode()
        try:
            return {file: source.splice(clean, tree, names).encode("utf-8", "surrogatepass")}
        except (LookupError, ValueError) as error:
            raise LookupError(f"{file}: {error.args[0]}") from None

    def done_again(self, question: Question, files):
        wrong = getattr(experiment, f"check_{question.name}")(files)
        yield result_of(question.name, question.points, wrong, True)

    def ignored(self, files: dict[str, bytes]) -> str:
        """What else the submission changed. None of it is used."""
        given = hand_out.handout(self.assignment, self.runner)
        others = [name for name, data in files.items() if name not in self.assignment.files
                  and given.get(name) != data]
        for file in self.assignment.files if self.assignment.number != 5 else []:
            try:
                tree = source.parse(file, files.get(file, b""))
                names = source.changed(given[file].decode(), tree, self.assignment.functions(file))
            except (ValueError, RecursionError):
                continue
            if file in files and names:
                others.append(f"{file}: {shorten(names, 5)}")
        return f"Changed, and ignored: {shorten(others, 9)}." if others else ""


def shorten(items: list, limit: int) -> str:
    """The first few of a list that may be long."""
    rest = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + rest


def result_of(name: str, points: float, wrong: list[str | None], visible: bool) -> dict:
    """One of Gradescope's tests. wrong: for each case what is wrong with it, or None."""
    points = round(points, 2)
    right, said = wrong.count(None), list(dict.fromkeys(filter(None, wrong)))
    more = [f"and {len(said) - 5} more"] if len(said) > 5 else []
    lines = [f"{right} of {len(wrong)} cases right", *said[:5], *more]
    return {"name": name, "score": round(points * right / len(wrong), 2), "max_score": points,
            "status": "passed" if right == len(wrong) else "failed", "output": "\n".join(lines),
            "visibility": "visible" if visible else "after_published"}


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
    names, rows = [], []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        try:
            results, problem = grader.grade(read_submission(path), out / f"{path.name}.json"), ""
        except (ValueError, OSError) as error:
            results, problem = {"tests": []}, str(error)
        scores = {}
        for row in results["tests"]:
            scores[row["number"]] = scores.get(row["number"], 0) + row["score"]
        names, total = list(dict.fromkeys([*names, *scores])), round(sum(scores.values()), 2)
        rows.append({"submission": path.name, "total": total, "problem": problem} | scores)
        print(f"{path.name:30} {total:6.2f}  {problem}", flush=True)
        with replacing(out / "grades.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["submission", "total", *names, "problem"], restval=0)
            writer.writeheader()
            writer.writerows(rows)
    if not rows:
        raise ValueError(f"{folder} is empty; SUBMISSION is an archive, a folder, or a folder of submissions")
    print(f"wrote {out / 'grades.csv'} and a .json for each submission")


def private_seed(path: Path) -> int:
    """The seed that an instructor's machine keeps, drawn at the first use."""
    if not path.exists():
        write_text(path, f"{secrets.randbelow(10**6) + 1}\n")
        print(f"drew a private seed and keeps it in {path}; the same hidden cases go to every submission")
    text = path.read_text().strip()
    if not text.isdecimal():
        raise ValueError(f"{path} holds no number; remove it, or give SEED=...")
    return int(text)


def main():
    parser = common.parser(__doc__)
    parser.add_argument("assignment", type=hand_out.number, metavar="N", help="the number of an assignment")
    parser.add_argument("submission", type=common.path, help="archive, folder, or folder of submissions")
    parser.add_argument("--seed", type=int, help="of the hidden cases, from 1 on; keep it to yourself")
    parser.add_argument("--results", type=common.path, default="out/grade/results.json", help="where the grades go")
    parser.add_argument("--seconds", type=common.positive(float), default=30, help="time limit of a question")
    args = parser.parse_args()
    if args.seed is not None and not 1 <= args.seed <= 10**6:
        parser.error("--seed must be from 1 to 1000000; seed 0 is what the handout shows")
    if args.results.is_dir():
        parser.error(f"--results {args.results} is a folder; name a file")
    submission = read_submission(args.submission) if not args.submission.is_dir() else None
    seed = args.seed or private_seed(args.results.parent / "seed")
    if sys.platform != "linux":
        print("this system cannot limit a process's memory; a submission that eats it is stopped by the clock alone",
              file=sys.stderr)
    with Runner(args.seconds) as runner:
        grader = Grader(args.assignment, seed, runner)
        if args.submission.is_dir():
            if not is_one(args.submission, args.assignment.files):
                return grade_many(grader, args.submission, args.results.parent)
            submission = read_submission(args.submission)
        show(grader.grade(submission, args.results))
    print(f"wrote {args.results}")


if __name__ == "__main__":
    common.run(main, interrupted="--results keeps the questions that were graded")
