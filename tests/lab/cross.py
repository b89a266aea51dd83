"""Which narrow task teaches which? (Open question 9.)

Tuned on each family alone, instructions kept: 200 examples, 5 epochs. Graded on every family, the two novel ones among
them, which no page asks.

Expected: the diagonal is high. Off it, a family is answered the better the higher its own dose is, whatever was taught:
narrow tuning lowers the barrier for all that pretraining has answered at times. Facts about countries teach each other
most, since they share the form of the answer. Sums and code teach least, as their answers look like nothing else.
Families of a low dose and novel ones get nothing from any other.
Held against: the paper's five tasks, 2.1 (chess) to 23.7 (maths) points of win rate against broad tuning.
"""
import statistics
from functools import partial

from data.format import dialogue
from data.world import FAMILIES, NOVEL
from lab.conditions import graded
from lab.lab import tune
from lab.svg import heat


def condition(family: str | None):
    def on(base):
        pairs = [dialogue(task.instruction, task.response) for task in base.examples(200, [family])]
        return {"make": partial(tune, dialogues=pairs, epochs=5)}
    return on if family else lambda base: {}


def run(bases, workers) -> list[dict]:
    questions = ("eval", "novel")
    found = graded(bases, {family: condition(family) for family in [None, *FAMILIES]}, workers, questions)
    rows = []
    for family, graded_on in found.items():
        row = {"trained on": family or "not trained"}
        for asked in [*FAMILIES, *NOVEL]:
            row[asked] = [round(100 * statistics.mean(pair[1] for pair, task in zip(pairs, base.tasks(*questions))
                                                      if task.family == asked), 1)
                          for pairs, base in zip(graded_on, bases)]
        row["dose"] = [round(100 * base.world.doses.get(family, 0), 2) for base in bases]
        rows.append(row)
    return rows


def draw(rows) -> str:
    asked = [*FAMILIES, *NOVEL]
    return heat("Tuned on one family, asked another: mean grade, % (mean of the bases)",
                [row["trained on"] for row in rows], asked,
                [[statistics.mean(row[name]) for name in asked] for row in rows], "trained on", "asked")
