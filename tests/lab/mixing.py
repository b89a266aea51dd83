"""What happens when implicit and explicit tuning are mixed? (Open question 6.)

Of 1,000 examples a share has its instruction blanked, five epochs. And a few pairs: 10, 30 or 100 pairs with their
instructions, 32 steps, from the base and from a response-tuned model.

Expected: a few kept instructions do most: with nine tenths blanked the grade is within 5 points of instruction tuning,
since the blanked ones do not contradict them. Only at 1 does it fall to response tuning. Response tuning first makes
ten pairs worth more, as they need not teach the form; with 100 pairs the order makes no difference.
Held against: nothing in the paper; Lab I's `size` has 50 % for three examples and 64 % for 1,000 at 32 steps.
"""
import math
import random
from functools import partial

from data.format import dialogue
from lab.conditions import WAYS, graded, summary
from lab.lab import tune
from lab.svg import BLUE, GREY, Panel, plot

SHARES, SIZES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.97, 1.0), (10, 30, 100)


def blanked(share: float):
    """Instruction tuning with so large a share of the instructions replaced by the empty string."""
    def on(base):
        tasks = base.examples()
        empty = set(random.Random(base.seed).sample(range(len(tasks)), round(share * len(tasks))))
        pairs = [dialogue("" if i in empty else task.instruction, task.response) for i, task in enumerate(tasks)]
        return {"make": partial(tune, dialogues=pairs, epochs=5)}
    return on


def few(n: int, first: bool):
    """n pairs with their instructions. first: from a model that was response-tuned."""
    def on(base):
        pairs = [dialogue(task.instruction, task.response) for task in base.examples(n)]
        epochs = math.ceil(32 / math.ceil(len(pairs) / 64))
        if not first:
            return {"make": partial(tune, dialogues=pairs, epochs=epochs)}
        responses = WAYS["response tuning"](base)["make"].keywords["dialogues"]
        return {"make": partial(after_responses, responses=responses, dialogues=pairs, epochs=epochs)}
    return on


def after_responses(base, responses, dialogues, epochs, seed):
    return tune(tune(base, responses, 2, seed, blank=True), dialogues, epochs, seed)


def run(bases, workers) -> list[dict]:
    conditions = {("share blanked", share): blanked(share) for share in SHARES}
    conditions |= {(start, n): few(n, start == "after response tuning")
                   for start in ("from the base", "after response tuning") for n in SIZES}
    conditions["after response tuning", 0] = WAYS["response tuning"]
    found = graded(bases, conditions, workers)
    return [{"mixture": mixture, "share or pairs": x, **summary(grades, found["share blanked", 0.0])}
            for (mixture, x), grades in found.items()]


def draw(rows) -> str:
    def curve(mixture):
        points = [(row["share or pairs"], row["grade"]) for row in rows if row["mixture"] == mixture]
        return sorted((x or 3, y) if "share" not in mixture else (100 * x, y) for x, y in points)

    return plot("Implicit and explicit tuning together: mean grade, %", [
        Panel("Some of 1,000 instructions blanked", [("", BLUE, curve("share blanked"))], "blanked, %"),
        Panel("A few pairs, from two beginnings", [
            ("from the base", GREY, curve("from the base")),
            ("after response tuning", BLUE, curve("after response tuning"))], "pairs", log=True,
              x_marks={3: "0"} | {n: str(n) for n in SIZES})])
