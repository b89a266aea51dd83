"""How many responses does it take, and of how many families? (Open question 3.)

Tuned on 3 to 1,000 examples of all families, and on 300 of 1 to 13 families, always for 32 steps or a little more (of
64 examples, or of all where there are fewer). Families that stood among the examples are graded apart from the others.

Expected: response tuning is there with few examples, since it only makes likelier what the base knows: half of its
final grade with 30, nearly all with 300. Instruction tuning needs more, since it can also teach families that pages do
not answer. With few families the others follow, as poems alone do in the paper; each further family adds less.
Held against: LIMA's 1,030 examples; "less is more for alignment" (Zhou et al., 2023).
"""
import random
from functools import partial

from data.world import FAMILIES
from lab.conditions import epochs_of, graded, only, summary, trained_on
from lab.svg import BLUE, GREY, ORANGE, Panel, plot, points

SIZES, N_FAMILIES = (3, 10, 30, 100, 300, 1000), (1, 2, 4, 8, 13)


def chosen(base, n_families: int) -> list[str]:
    return random.Random(base.seed).sample(FAMILIES, n_families)


def condition(base, n: int, n_families: int, blank: bool) -> dict:
    pairs = base.pairs(n, chosen(base, n_families))
    return trained_on(pairs, blank, epochs_of(32, pairs))


def run(bases, workers) -> list[dict]:
    names = [(n, 13, blank) for blank in (True, False) for n in SIZES] + [(300, k, True) for k in N_FAMILIES[:-1]]
    conditions = {(n, k, blank): partial(condition, n=n, n_families=k, blank=blank) for n, k, blank in names}
    rows = []
    for (n, k, blank), of_all in graded(bases, conditions, workers).items():
        grades = {"all": of_all}
        if k < 13:
            grades["shown"] = only(lambda base, task: task.family in chosen(base, k), of_all, bases)
            grades["others"] = only(lambda base, task: task.family not in chosen(base, k), of_all, bases)
        rows += [{"examples": n, "families": k, "instructions": "blanked" if blank else "kept", "graded on": words,
                  **summary(pairs)} for words, pairs in grades.items()]
    return rows


def draw(rows) -> str:
    def curve(x, **wanted):
        return points(rows, x, "grade", **wanted)

    few = {"examples": 300, "instructions": "blanked"}
    return plot("Mean grade against what it was tuned on, %", [
        Panel("All families", [
            ("responses", BLUE, curve("examples", families=13, instructions="blanked")),
            ("with instructions", GREY, curve("examples", families=13, instructions="kept"))], "examples", log=True),
        Panel("300 responses", [
            ("families that were shown", BLUE, curve("families", **few, **{"graded on": "shown"})),
            ("the others", ORANGE, curve("families", **few, **{"graded on": "others"}))], "families", log=True)])
