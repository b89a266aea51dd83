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

import torch

from data.world import FAMILIES
from lab.conditions import spearman
from lab.narrow import FEATURES, backwards, charts, least_squares, of_family, otherwise, tried, unchanged
from lab.svg import BLUE, GREEN, ORANGE

FORMS = {"as usual": (unchanged, BLUE), "backwards": (backwards, ORANGE),
         "after a greeting": (lambda text, rng: f"Hello! {text}", GREEN)}
TASKS = {(family, form): otherwise(of_family(family), change) for family in FAMILIES
         for form, (change, _) in FORMS.items()}


def foretold(x, y, n_halvings: int = 200) -> tuple[dict[str, int], dict[str, list[float]]]:
    """How often each feature was chosen, and the rank correlations on the other halves of each way to foretell.

    x: (N tasks, features), y: (N,), the grades."""
    rng, chosen, reached = random.Random(1), dict.fromkeys(FEATURES, 0), {"best single number": [], "regression": []}
    z = (x - x.mean(0)) / (x.std(0) + 1e-9)
    for _ in range(n_halvings):
        # What is best on one half ...
        order = rng.sample(range(len(y)), len(y))
        half, other = order[: len(y) // 2], order[len(y) // 2 :]
        found = [spearman(z[half, i].tolist(), y[half].tolist()) for i in range(z.shape[1])]
        best = max(range(len(found)), key=lambda i: abs(found[i]))
        chosen[FEATURES[best]] += 1
        slopes = least_squares(z[half], y[half] - y[half].mean())

        # ... is tried on the other.
        sign = 1 if found[best] > 0 else -1
        for name, guess in (("best single number", sign * z[other, best]), ("regression", z[other] @ slopes)):
            reached[name].append(spearman(guess.tolist(), y[other].tolist()))
    return chosen, reached


def run(bases, workers) -> list[dict]:
    found = tried(bases, TASKS, 100, 8, workers, ("val",))
    rows = [{"what": "task", "family": family, "form": form, **row} for (family, form), row in found.items()]
    features, grades = [], [statistics.mean(row["grade"]) for row in rows]
    for name in FEATURES:
        features.append([statistics.mean(row[name]) for row in rows])
    chosen, reached = foretold(torch.tensor(features).T, torch.tensor(grades))
    correlations = {name: round(spearman(column, grades), 2) for name, column in zip(FEATURES, features)}
    blank = dict.fromkeys(("family", "form", "right", "grade"), "")
    rows.append({"what": "rank correlation, all tasks", **blank, **correlations})
    rows.append({"what": "times chosen, of 200", **blank, **chosen})
    for name, values in reached.items():
        mean_and_deviation = f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
        rows.append({"what": f"on the other half: {name}", **blank, "form": mean_and_deviation})
    return rows


def draw(rows) -> str:
    return charts([(form, color, [row for row in rows if row["form"] == form]) for form, (_, color) in FORMS.items()])
