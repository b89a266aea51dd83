"""The laboratory: each question that the paper leaves open is an experiment.

    make lab            # the questions with their answers
    make lab Q=tags     # one experiment: its table here, its JSON and SVG in tests/lab/results

An experiment is a file of its name. It says what is expected before it runs, compares conditions on three bases
(`run`), and draws what came out (`draw`). The first one pretrains two of the bases, about 20 minutes on two cores.
"""
import os
import statistics
import sys
from importlib import import_module
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent.parent), str(Path(__file__).parent.parent)]
from data import common  # first: Ctrl-C is quiet from here on
from data.common import markdown, write_json, write_text
from lab.conditions import three_bases
from lab.figures import QUESTIONS, RESULTS
from lab.lab import default_workers

CHAPTERS = Path(__file__).parent / "README.md"


def answers() -> str:
    """The questions with their answers, as the table that opens the chapters has them."""
    lines = CHAPTERS.read_text(encoding="utf-8").splitlines()
    rows = [line.split("|")[1:4] for line in lines if line.startswith("| [`")]
    return "\n\n".join(f"{name.split('`')[1]}: {question.strip()}\n  {answer.strip()}"
                       for name, question, answer in rows)


def table(rows: list[dict]) -> str:
    """Rows as a table, without their points."""
    cells = []
    for row in rows:
        cells.append({column: cell(row, column) for column in rows[0] if column != "points"})
    return markdown(cells)


def cell(row: dict, column: str) -> str:
    """A value as text: a difference with its error, the mean and deviation of values over bases, a number, words."""
    value = row.get(column, "")
    if column == "difference":
        return f"{value[0]:+.1f} ± {value[1]:.1f}" if value else "–"
    if isinstance(value, list):
        return f"{statistics.mean(value):.1f}" + f" ± {statistics.stdev(value):.1f}" * (len(value) > 1)
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def main():
    parser = common.parser(__doc__)
    parser.add_argument("question", nargs="?", choices=QUESTIONS, metavar="Q", help=", ".join(QUESTIONS))
    parser.add_argument("--workers", type=common.positive(int), default=default_workers(),
                        help="processes side by side")
    args = parser.parse_args()
    if not args.question:
        return print(answers())
    experiment = import_module(f"lab.{args.question}")
    rows = experiment.run(three_bases(args.workers), args.workers)
    write_json(RESULTS / f"{args.question}.json", rows)
    write_text(RESULTS / f"{args.question}.svg", experiment.draw(rows))
    print(table(rows))


if __name__ == "__main__":
    common.run(main, interrupted="what was made is kept, and the same command goes on")
