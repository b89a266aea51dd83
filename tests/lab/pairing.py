"""Must instruction and response belong together? (Open question 3; the authors' code can shuffle instructions.)

The same 1,000 responses with their own instructions, with those of another response of the family, with those of any
other response, and with none.

Expected: with its own instruction best. Shuffled over all, the instruction says nothing about the response, so a model
can only learn what response tuning teaches; it should come near the empty instruction, a little below, since it also
learns to overlook the instruction. Shuffled within a family is the worst for what asks about a named subject: the model
is taught that a question about one country is answered about another.
Held against: nothing published; the paper has the script and no result.
"""
import random
from functools import partial

from data.format import dialogue
from lab.conditions import graded, summary, trained_on
from lab.svg import BLUE, bars

PAIRINGS = {"its own": None, "none (response tuning)": None, "another of the family": "family", "any other": "all"}


def instructions(tasks, among: str | None, seed: int) -> list[str]:
    """The instruction that each response gets: shuffled among those of its family, among all, or its own."""
    rng, groups = random.Random(seed), {}
    for i, task in enumerate(tasks):
        group = {None: i, "family": task.family, "all": "all"}[among]
        groups.setdefault(group, []).append(i)
    given = {}
    for group in groups.values():
        given |= zip(group, rng.sample(group, len(group)))
    return [tasks[given[i]].instruction for i in range(len(tasks))]


def condition(base, name: str, epochs: int) -> dict:
    tasks = base.examples()
    shuffled = instructions(tasks, PAIRINGS[name], base.seed)
    pairs = [dialogue(asked, task.response) for asked, task in zip(shuffled, tasks)]
    return trained_on(pairs, name.startswith("none"), epochs)


def run(bases, workers) -> list[dict]:
    conditions = {(epochs, name): partial(condition, name=name, epochs=epochs)
                  for epochs in (2, 5) for name in PAIRINGS}
    found = graded(bases, conditions, workers)
    return [{"instruction": name, "epochs": epochs, **summary(grades, found[epochs, "none (response tuning)"])}
            for (epochs, name), grades in found.items()]


def draw(rows) -> str:
    return bars("Which instruction stands before a response in training: mean grade, %", [("grade", BLUE)],
                [(f"{row['instruction']}, {row['epochs']} epochs", [row["grade"]]) for row in rows])
