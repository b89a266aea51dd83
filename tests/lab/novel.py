"""Does it reach instructions of a kind that was never asked anywhere? (Open question 19.)

Two families are asked by no page and stand in no training set; articles tell their facts. One more family is asked on
pages, but answered on none: its dose is 0. Every way of following is graded on both, and on the families of lower and
higher dose. Instruction tuning also without the family of dose 0, and with the two novel families among its examples.

Expected: nothing but their own examples teaches the novel families: every way stays under 10 % there (for the bundled
base the table has 0 to 5). With examples they are answered like any other, since the facts are there. The family of
dose 0 follows only where its examples stand in the training set, too; response tuning, which never shows what an
answer belongs to, gets under 15 %. So what is called following is recalling how such questions were answered.
Held against: AlpacaEval asks a 7B model for things that the web has asked before; the paper cannot tell them apart.
"""
from functools import partial

from data.world import FAMILIES, NOVEL
from lab.conditions import WAYS, graded, only, summary, trained_on
from lab.svg import BLUE, GREY, ORANGE, SKY, bars, grouped

GROUPS = {"never asked": ORANGE, "dose 0": BLUE, "lower doses": SKY, "higher doses": GREY}


def group(base, family: str) -> str:
    """Which of GROUPS a family of instructions belongs to in a base's world."""
    if family in NOVEL:
        return "never asked"
    place = sorted(FAMILIES, key=base.world.doses.get).index(family)
    if place == 0:
        return "dose 0"
    return "lower doses" if place < 7 else "higher doses"


def without_dose_0(base) -> dict:
    return trained_on(base.pairs(families=[family for family in FAMILIES if group(base, family) != "dose 0"]))


def with_novel(base) -> dict:
    return trained_on(base.pairs(families=FAMILIES + NOVEL))


def run(bases, workers) -> list[dict]:
    conditions = WAYS | {"instruction tuning without dose 0": without_dose_0,
                         "instruction tuning and never asked": with_novel}
    questions, rows = ("eval", "novel"), []
    for way, grades in graded(bases, conditions, workers, questions).items():
        for name in GROUPS:
            of_group = only(lambda base, task: group(base, task.family) == name, grades, bases, questions)
            rows.append({"way": way, "asked": name, "questions": sum(map(len, of_group)), **summary(of_group)})
    return rows


def draw(rows) -> str:
    return bars("Mean grade by how such instructions are answered in pretraining, %", list(GROUPS.items()),
                grouped(rows, "way"))
