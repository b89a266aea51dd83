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

from data.world import FAMILIES, NOVEL
from lab.conditions import graded, of_families, percent, trained_on, untrained
from lab.svg import heat


def condition(base, family: str) -> dict:
    return trained_on(base.pairs(200, [family]))


def run(bases, workers) -> list[dict]:
    questions, rows = ("eval", "novel"), []
    conditions = {"not trained": untrained} | {family: partial(condition, family=family) for family in FAMILIES}
    for family, graded_on in graded(bases, conditions, workers, questions).items():
        row = {"trained on": family}
        for asked in [*FAMILIES, *NOVEL]:
            of_bases = of_families([asked], graded_on, bases, questions)
            row[asked] = [percent((grade for _, grade in pairs), 1) for pairs in of_bases]
        row["dose"] = [round(100 * base.world.doses.get(family, 0), 2) for base in bases]
        rows.append(row)
    return rows


def draw(rows) -> str:
    asked, means = [*FAMILIES, *NOVEL], []
    for row in rows:
        means.append([statistics.mean(row[name]) for name in asked])
    return heat("Tuned on one family, asked another: mean grade, % (mean of the bases)",
                [row["trained on"] for row in rows], asked, means, "trained on", "asked")
