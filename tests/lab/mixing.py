"""What happens when implicit and explicit tuning are mixed? (Open question 6.)

Of 1,000 examples a share has its instruction blanked, five epochs. And a few pairs: 10, 30 or 100 pairs with their
instructions, 32 steps, from the base and from a response-tuned model.

Expected: a few kept instructions do most: with nine tenths blanked the grade is within 5 points of instruction tuning,
since the blanked ones do not contradict them. Only at 1 does it fall to response tuning. Response tuning first makes
ten pairs worth more, as they need not teach the form; with 100 pairs the order makes no difference.
Held against: nothing in the paper; Lab I's `size` has 50 % for three examples and 64 % for 1,000 at 32 steps.
"""
import random
from functools import partial

from data.format import dialogue
from lab.conditions import WAYS, epochs_of, graded, summary, trained_on
from lab.lab import tune
from lab.svg import BLUE, GREY, Panel, plot, points

SHARES, SIZES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.97, 1.0), (10, 30, 100)


def blanked(base, share: float) -> dict:
    """Instruction tuning with so large a share of the instructions replaced by the empty string."""
    tasks = base.examples()
    empty = set(random.Random(base.seed).sample(range(len(tasks)), round(share * len(tasks))))
    return trained_on([dialogue("" if i in empty else task.instruction, task.response)
                       for i, task in enumerate(tasks)])


def few(base, n: int, start: str) -> dict:
    """n pairs with their instructions, from one of the two beginnings."""
    pairs = base.pairs(n)
    epochs = epochs_of(32, pairs)
    if start == "from the base":
        return trained_on(pairs, epochs=epochs)
    return trained_on(pairs, epochs=epochs, how=after_responses, responses=base.pairs())


def after_responses(base, responses, dialogues, epochs, seed, blank):
    return tune(tune(base, responses, 2, seed, blank=True), dialogues, epochs, seed, blank=blank)


def run(bases, workers) -> list[dict]:
    conditions = {("share blanked", share): partial(blanked, share=share) for share in SHARES}
    for start in ("from the base", "after response tuning"):
        conditions |= {(start, n): partial(few, n=n, start=start) for n in SIZES}
    conditions["after response tuning", 0] = WAYS["response tuning"]
    found = graded(bases, conditions, workers)
    return [{"mixture": mixture, "share or pairs": x, **summary(grades, found["share blanked", 0.0])}
            for (mixture, x), grades in found.items()]


def draw(rows) -> str:
    def curve(mixture):
        return points(rows, "share or pairs", "grade", mixture=mixture)

    shares = [(100 * share, grade) for share, grade in curve("share blanked")]
    base, tuned = (sorted((n or 3, grade) for n, grade in curve(start))
                   for start in ("from the base", "after response tuning"))
    return plot("Implicit and explicit tuning together: mean grade, %", [
        Panel("Some of 1,000 instructions blanked", [("", BLUE, shares)], "blanked, %"),
        Panel("A few pairs, from two beginnings", [
            ("from the base", GREY, base), ("after response tuning", BLUE, tuned)], "pairs", log=True,
              x_marks={3: "0"} | {n: str(n) for n in SIZES})])
