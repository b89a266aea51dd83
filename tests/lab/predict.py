"""Can one foretell, from data and base alone, whether a task will teach? (Open question 17.)

39 narrow tasks: each family of instruction, answered as usual, backwards, and after a greeting. Of each, before it is
trained, six numbers (see `narrow.py`). Then it is trained: 100 examples, 8 epochs, graded on `val`. The number whose
rank correlation with the grade is largest on one half of the tasks, and a regression on all six, foretell the other
half; over 200 halvings.

Expected: the loss per token is the best single predictor, with a rank correlation of about -0.6 on the other half: what
the base finds natural teaches, and backwards it finds nothing natural. Likeness to broad responses comes second, length
and entropy are useless. The regression is no better than the best single number, since 19 tasks are few for six slopes.
Held against: nothing; the paper leaves it open.
"""
import random
import statistics
from functools import partial

import torch

from data.world import FAMILIES
from lab.compare import graded, spearman, summary
from lab.lab import side_by_side, tune
from lab.narrow import FEATURES, backwards, features, of_family, otherwise, pairs
from lab.svg import BLUE, GREEN, ORANGE, Panel, plot

FORMS = {"as usual": (lambda text, rng: text, BLUE), "backwards": (backwards, ORANGE),
         "after a greeting": (lambda text, rng: f"Hello! {text}", GREEN)}
TASKS = {(family, form): otherwise(of_family(family), change) for family in FAMILIES
         for form, (change, _) in FORMS.items()}


def condition(name):
    return lambda base: {"make": partial(tune, dialogues=pairs(base, str(name), TASKS[name], 100), epochs=8)}


def foretold(x, y, n_halvings: int = 200) -> tuple[dict[str, int], dict[str, list[float]]]:
    """How often each feature was chosen, and the rank correlations on the other halves of each way to foretell.

    x: (N tasks, features), y: (N,), the grades."""
    rng, chosen, reached = random.Random(1), dict.fromkeys(FEATURES, 0), {"best single number": [], "regression": []}
    z = (x - x.mean(0)) / (x.std(0) + 1e-9)
    for _ in range(n_halvings):
        order = rng.sample(range(len(y)), len(y))
        half, other = order[: len(y) // 2], order[len(y) // 2 :]
        found = [spearman(z[half, i].tolist(), y[half].tolist()) for i in range(z.shape[1])]
        best = max(range(len(found)), key=lambda i: abs(found[i]))
        chosen[FEATURES[best]] += 1
        slopes = torch.linalg.lstsq(z[half], (y[half] - y[half].mean())[:, None], driver="gelsd").solution[:, 0]
        for name, guess in (("best single number", z[other, best] * (1 if found[best] > 0 else -1)),
                            ("regression", z[other] @ slopes)):
            reached[name].append(spearman(guess.tolist(), y[other].tolist()))
    return chosen, reached


def run(bases, workers) -> list[dict]:
    found = graded(bases, {name: condition(name) for name in TASKS}, workers, ("val",))
    of = side_by_side({(name, base.seed): (1, features, base, pairs(base, str(name), TASKS[name], 100))
                       for name in TASKS for base in bases}, workers)
    tasks = [{"what": "task", "family": name[0], "form": name[1], **summary(found[name]), **{
        feature: [of[name, base.seed][i] for base in bases] for i, feature in enumerate(FEATURES)}} for name in TASKS]
    x = torch.tensor([[statistics.mean(row[feature]) for feature in FEATURES] for row in tasks])
    y = torch.tensor([statistics.mean(row["grade"]) for row in tasks])
    chosen, reached = foretold(x, y)
    blank = dict.fromkeys(("family", "form", "right", "grade"), "")
    rows = [{"what": "rank correlation, all tasks", **blank, **{
        feature: round(spearman(x[:, i].tolist(), y.tolist()), 2) for i, feature in enumerate(FEATURES)}},
        {"what": "times chosen, of 200", **blank, **chosen}]
    rows += [{"what": f"on the other half: {name}", **blank, "form": f"{statistics.mean(values):.2f} ± "
              f"{statistics.stdev(values):.2f}"} for name, values in reached.items()]
    return tasks + rows


def draw(rows) -> str:
    return plot("What a narrow task teaches, mean grade in %, against what the base makes of the task", [
        Panel(feature, [(form, color, [(statistics.mean(row[feature]), row["grade"]) for row in rows
                                       if row["form"] == form]) for form, (_, color) in FORMS.items()], joined=False)
        for feature in FEATURES])
