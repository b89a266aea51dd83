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

from data.format import dialogue
from data.world import FAMILIES, NOVEL
from lab.conditions import WAYS, graded, summary
from lab.lab import tune
from lab.svg import BLUE, GREY, ORANGE, SKY, bars

GROUPS = {"never asked": ORANGE, "dose 0": BLUE, "lower doses": SKY, "higher doses": GREY}


def group(base, family: str) -> str:
    """Which of GROUPS a family of instructions belongs to in a base's world."""
    order = sorted(FAMILIES, key=base.world.doses.get)
    if family in NOVEL:
        return "never asked"
    return "dose 0" if family == order[0] else "lower doses" if order.index(family) < 7 else "higher doses"


def instruction_tuning(chosen):
    """Instruction tuning on 1,000 examples of the families that chosen(base) gives."""
    def on(base):
        pairs = [dialogue(task.instruction, task.response) for task in base.examples(families=chosen(base))]
        return {"make": partial(tune, dialogues=pairs, epochs=5)}
    return on


def run(bases, workers) -> list[dict]:
    conditions = WAYS | {
        "instruction tuning without dose 0": instruction_tuning(
            lambda base: [family for family in FAMILIES if group(base, family) != "dose 0"]),
        "instruction tuning and never asked": instruction_tuning(lambda base: FAMILIES + NOVEL)}
    questions = ("eval", "novel")
    found, rows = graded(bases, conditions, workers, questions), []
    for way, grades in found.items():
        for name in GROUPS:
            of_group = [[pair for pair, task in zip(pairs, base.tasks(*questions)) if group(base, task.family) == name]
                        for pairs, base in zip(grades, bases)]
            rows.append({"way": way, "asked": name, "questions": sum(map(len, of_group)), **summary(of_group)})
    return rows


def draw(rows) -> str:
    ways = list(dict.fromkeys(row["way"] for row in rows))
    return bars("Mean grade by how such instructions are answered in pretraining, %", list(GROUPS.items()), [
        (way, [row["grade"] for row in rows if row["way"] == way]) for way in ways])
