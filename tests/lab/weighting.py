"""Does it matter whether every token or every example weighs the same in a step? And which reading of rule 3 is used?

The authors' code averages the loss of each example, then over examples; the loss of train.py averages over all tokens
of a step, so that long responses weigh more. Their rule 3 penalises the prompt's tokens, too; that of the paper's text
does not.

Expected: the weights matter little here, less than a point or two: responses differ in length by a factor of six, but
what must be learned (answer, then stop) stands in all of them. Where they differ, weighing examples helps families of
short answers. Rule 3 with the prompt's tokens is worth several points where the base asks back, since a question back
repeats the question; but it also penalises the subject that an answer must name.
Held against: 24.4, 10.4, 14.3 and 16.3 points of win rate, made with the authors' code.
"""
from functools import partial
from itertools import groupby

import torch

from data.format import encode
from lab.conditions import graded, summary, trained_on, untrained
from lab.lab import LR, fit, identity, kept, load, save_tuned, tune
from lab.svg import BLUE, GREY, bars, grouped
from train import collate, n_scored, summed_loss

SETS = {"all three rules": ("eos", "tokens", "repeats"), "without rule 1": ("tokens", "repeats"),
        "without rule 2": ("eos", "repeats")}


def mean_of_means(model, examples, token_budget, autocast=False):
    """As train.py's `accumulate_gradient`, for the authors' loss: the mean over examples of their mean token loss."""
    total = torch.zeros(())
    for count, group in groupby(sorted(examples, key=n_scored), key=n_scored):  # these share one weight
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = summed_loss(model, collate(list(group), model.device)) / count / len(examples)
        loss.backward()
        total += loss.detach()
    return total


def tune_by_example(base, dialogues, epochs, seed, blank):
    def make(folder):
        model, tokenizer = load(base)
        examples = [encode(tokenizer, messages, model.config.context, blank) for messages in dialogues]
        fit(model, examples, epochs, LR, seed, gradient=mean_of_means)
        save_tuned(model, base, folder)

    return kept("tuned", ["by example", identity(base), dialogues, epochs, seed, blank], make)


def condition(base, how, blank: bool) -> dict:
    return trained_on(base.pairs(), blank, how=how)


def run(bases, workers) -> list[dict]:
    conditions = {}
    for words, blank in (("response tuning", True), ("instruction tuning", False)):
        conditions[words, "every token"] = partial(condition, how=tune, blank=blank)
        conditions[words, "every example"] = partial(condition, how=tune_by_example, blank=blank)
    for words, rules in SETS.items():
        conditions[words, "the response"] = partial(untrained, rules=rules)
        conditions[words, "the prompt, too"] = partial(untrained, rules=rules, penalise_prompt=True)
    found = graded(bases, conditions, workers)
    first = {words: grades for (words, _), grades in reversed(found.items())}  # the first of each two
    return [{"method": words, "weighs the same, or rule 3 penalises": which, **summary(grades, first[words])}
            for (words, which), grades in found.items()]


def draw(rows) -> str:
    return bars("Two slips or choices of the authors' code: mean grade, %",
                [("this repository: every token weighs the same; rule 3 on the response", GREY),
                 ("the authors' code: every example weighs the same; rule 3 on the prompt, too", BLUE)],
                grouped(rows, "method"))
