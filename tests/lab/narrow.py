"""Narrow tasks that are made up for the laboratory, and what a base makes of them before it is trained on them.

A task is a function of a base and a random generator that gives (instruction, response).
"""
import math
import random
import statistics
from collections import Counter
from functools import partial

import torch

from data.format import dialogue, encode
from data.world import KIND
from judge import log_likelihoods
from lab.conditions import graded, summary, trained_on
from lab.lab import load, side_by_side
from lab.likeness import likeness
from lab.svg import Panel, plot

FEATURES = ["loss per token", "loss of the first", "tokens", "entropy of the first", "gain by its instruction",
            "likeness to broad"]


def of_family(family: str):
    def example(base, rng):
        task = base.world.task(rng, family, rng.choice(base.world.seen[KIND[family]]))
        return task.instruction, task.response
    return example


def otherwise(task, change, asked: str | None = None):
    """A task whose responses are changed by change(response, rng), and whose instruction is `asked`, if given."""
    def example(base, rng):
        instruction, response = task(base, rng)
        return asked or instruction, change(response, rng)
    return example


def unchanged(text: str, rng) -> str:
    return text


def backwards(text: str, rng) -> str:
    return " ".join(reversed(text.split()))


def pairs(base, name: str, task, n: int) -> list[list[dict]]:
    """n dialogues of a task, or as many as the base takes."""
    rng = random.Random(f"{name} {base.seed}")
    return [dialogue(*task(base, rng)) for _ in range(min(n, base.limit or n))]


def features(base, dialogues: list[list[dict]]) -> list[float]:
    """FEATURES of a task, read off some of its examples and the base alone; losses and entropy in nats.

    loss: of the responses after their instructions, as a mean over examples. gain: by how much the loss per token is
    smaller than after another example's instruction. likeness: of the responses to those of all families (cosine).
    """
    model, tokenizer = load(base.folder)

    def encoded(pairs):
        return [encode(tokenizer, messages, model.config.context) for messages in pairs]

    # The losses of the responses, after their own instructions and after others'.
    own, swapped = encoded(dialogues), []
    for (asked, _), (_, answer) in zip(dialogues[1:] + dialogues[:1], dialogues):
        swapped.append([asked, answer])
    (totals, means), (_, of_others) = log_likelihoods(model, own), log_likelihoods(model, encoded(swapped))

    # Their first tokens.
    beginnings = []
    for ids, labels in own:
        end = next(t for t, label in enumerate(labels) if label >= 0) + 1
        beginnings.append((ids[:end], labels[:end]))
    _, first = log_likelihoods(model, beginnings)
    shares = [n / len(own) for n in Counter(ids[-1] for ids, _ in beginnings).values()]
    entropy = -sum(share * math.log(share) for share in shares)

    # How alike they are to broad responses.
    rng, broad = random.Random("likeness"), [task.response for task in base.examples(200)]
    documents = [base.world.document(rng) for _ in range(100)]
    alike, = likeness(base, [answer["content"] for _, answer in dialogues], broad, centre=documents)
    values = [-means.mean(), -first.mean(), (totals / means).mean(), entropy, (means - of_others).mean(), alike.mean()]
    return [round(float(value), 3) for value in values]


def tried(bases, tasks: dict, n: int, epochs: int, workers: int, questions: tuple = ("eval",)) -> dict[object, dict]:
    """{name: the row of a task}, for tasks {name: task}: FEATURES, each a list over bases, from 100 examples at most,
    and the summary of what a base answers that was tuned on n examples."""
    def condition(base, name):
        return trained_on(examples[name, base.seed], epochs=epochs)

    examples = {(name, base.seed): pairs(base, str(name), task, n) for name, task in tasks.items() for base in bases}
    found = graded(bases, {name: partial(condition, name=name) for name in tasks}, workers, questions)
    of = side_by_side({(name, base.seed): (1, features, base, examples[name, base.seed][:100])
                       for name in tasks for base in bases}, workers)
    rows = {}
    for name in tasks:
        columns = zip(*(of[name, base.seed] for base in bases))  # a feature's values over bases
        rows[name] = summary(found[name]) | {feature: list(values) for feature, values in zip(FEATURES, columns)}
    return rows


def least_squares(x, y):
    """The slopes of a regression of y (N,) on the columns of x (N, K), without a constant. Returns (K,)."""
    return torch.linalg.lstsq(x, y[:, None], driver="gelsd").solution[:, 0]


def charts(groups: list[tuple[str, str, list[dict]]]) -> str:
    """The grade against each of FEATURES; groups: words, their colour, and the rows of tasks."""
    panels = []
    for feature in FEATURES:
        shown = [(words, color, [(statistics.mean(row[feature]), row["grade"]) for row in rows])
                 for words, color, rows in groups]
        panels.append(Panel(feature, shown, joined=False))
    return plot("What a narrow task teaches, mean grade in %, against what the base makes of the task", panels)
