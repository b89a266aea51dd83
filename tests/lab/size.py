"""How many responses does it take, and of how many families? (Open question 3.)

Tuned on 3 to 1,000 examples of all families, and on 300 of 1 to 13 families, always for 32 steps or a little more (of
64 examples, or of all where there are fewer). Families that stood among the examples are graded apart from the others.

Expected: response tuning is there with few examples, since it only makes likelier what the base knows: half of its
final grade with 30, nearly all with 300. Instruction tuning needs more, since it can also teach families that pages do
not answer. With few families the others follow, as poems alone do in the paper; each further family adds less.
Held against: LIMA's 1,030 examples; "less is more for alignment" (Zhou et al., 2023).
"""
import math
import random
from functools import partial

from data.format import dialogue
from data.world import FAMILIES
from lab.conditions import graded, summary
from lab.lab import tune
from lab.svg import BLUE, GREY, ORANGE, Panel, plot

SIZES, N_FAMILIES = (3, 10, 30, 100, 300, 1000), (1, 2, 4, 8, 13)


def chosen(base, n_families: int) -> list[str]:
    return random.Random(base.seed).sample(FAMILIES, n_families)


def condition(n: int, n_families: int, blank: bool):
    def on(base):
        pairs = [dialogue(task.instruction, task.response) for task in base.examples(n, chosen(base, n_families))]
        epochs = math.ceil(32 / math.ceil(len(pairs) / 64))
        return {"make": partial(tune, dialogues=pairs, epochs=epochs, blank=blank)}
    return on


def run(bases, workers) -> list[dict]:
    names = [(n, 13, blank) for blank in (True, False) for n in SIZES] + [(300, k, True) for k in N_FAMILIES[:-1]]
    found = graded(bases, {name: condition(*name) for name in names}, workers)
    rows = []
    for n, k, blank in names:
        grades = {"all": found[n, k, blank]}
        if k < 13:
            shown = [[task.family in chosen(base, k) for task in base.tasks("eval")] for base in bases]
            for word, wanted in (("shown", True), ("others", False)):
                grades[word] = [[pair for pair, is_shown in zip(pairs, some) if is_shown == wanted]
                                for pairs, some in zip(found[n, k, blank], shown)]
        rows += [{"examples": n, "families": k, "instructions": "blanked" if blank else "kept", "graded on": word,
                  **summary(some)} for word, some in grades.items()]
    return rows


def draw(rows) -> str:
    def curve(x, **wanted):
        return [(row[x], row["grade"]) for row in rows if wanted.items() <= row.items()]

    few = {"examples": 300, "instructions": "blanked"}
    return plot("Mean grade against what it was tuned on, %", [
        Panel("All families", [
            ("responses", BLUE, curve("examples", families=13, instructions="blanked")),
            ("with instructions", GREY, curve("examples", families=13, instructions="kept"))], "examples", log=True),
        Panel("300 responses", [
            ("families that were shown", BLUE, curve("families", **few, **{"graded on": "shown"})),
            ("the others", ORANGE, curve("families", **few, **{"graded on": "others"}))], "families", log=True)])
