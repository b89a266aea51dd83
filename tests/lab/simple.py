"""Why do simple rules do? (Open question 20.)

An instruction-tuned model answers 260 instructions. At every token of its answers: the Kullback-Leibler divergence
from its next-token distribution to the base's, in nats, and whether the token is the base's first choice, too. Then
the three rules' numbers are fitted (as in `bias`) on half of the answers, and the other half is measured again under
base and rules together.

Expected: the divergence sits at the first token and at EOS, with under a fifth of it anywhere else; over nine tenths
of the other tokens are the base's first choice. A shift and a slope take away most of it at the first token, where the
same silences must be made unlikely after any instruction, and at EOS; in the middle they take away nothing. So simple
rules do because little is to be changed, and always the same.
Held against: URIAL (Lin et al., 2023): 78 % of an aligned model's tokens are its base's first choice, 5 % are shifted,
mostly words of style.
"""
import torch
import torch.nn.functional as F

from adapter import Adapter
from data.format import dialogue, encode
from lab.adapters import fit_rules, predicting
from lab.conditions import WAYS, made_by, on_each, remembered
from lab.lab import ask, load, set_numbers
from lab.svg import GREY, ORANGE, bars

PLACES = ["first", "second", "third", "later", "EOS"]


def measured(base) -> dict[str, list]:
    """{place: [tokens, nats before, nats under rules, first choices before, under rules]}, sums over tokens."""
    tuned = made_by(base, WAYS["instruction tuning"])
    asked = [task.instruction for task in base.tasks("eval")]
    pairs = [dialogue(*pair) for pair in zip(asked, ask(tuned, asked))]
    (model, tokenizer), (other, _) = load(base.folder), load(tuned)
    rules = Adapter(tokenizer, model.config.vocab_size)
    set_numbers(rules, fit_rules(base.folder, pairs[::2], False, 1e-4))
    sums = {place: [0.0] * 5 for place in PLACES}
    for messages in pairs[1::2]:
        ids, labels = map(torch.tensor, encode(tokenizer, messages, model.config.context))
        for n, (token, values) in enumerate(along(model, other, rules, ids, labels)):
            place = "EOS" if token == tokenizer.eos_id else PLACES[min(n, 3)]
            sums[place] = [a + b for a, b in zip(sums[place], values)]
    return sums


@torch.inference_mode()
def along(model, tuned, rules, ids, labels):
    """For each token of an answer: the token, and [1, nats to the base, to base and rules, first choice of each].

    ids, labels: (T,) int64, of a dialogue as `encode` gives it.
    """
    before = predicting(labels)  # (N,)
    wanted = tuned(ids[None, :-1])[0, before].log_softmax(-1)  # (N, V)
    scores, seen = model(ids[None, :-1])[0, before], rules.seen_at_first([[]])
    for n, token in enumerate(labels[before + 1].tolist()):
        both = [scores[n], scores[n] + rules.scores(seen, n)[0]]
        nats = [F.kl_div(one.log_softmax(-1), wanted[n], log_target=True, reduction="sum").item() for one in both]
        yield token, [1, *nats, *(float(one.argmax() == token) for one in both)]
        seen[0, token] = True


def run(bases, workers) -> list[dict]:
    found, = on_each(bases, {(): (1, remembered, "simple", measured)}, workers).values()
    totals = [[sum(column) for column in zip(*of_base.values())] for of_base in found]
    rows = []
    for place in [*PLACES, "all"]:
        sums = totals if place == "all" else [of_base[place] for of_base in found]
        row = {"place": place, "tokens": sum(int(one[0]) for one in sums),
               "share of the nats": [round(100 * one[1] / total[1], 1) for one, total in zip(sums, totals)]}
        for i, name in enumerate(("nats per 100 tokens", "under rules", "first choice, %", "under rules, %"), 1):
            row[name] = [round(100 * one[i] / max(one[0], 1), 2) for one in sums]
        rows.append(row)
    return rows


def draw(rows) -> str:
    shown = []
    for row in rows:
        words = row["place"] + " token" * (row["place"] in PLACES[:3])
        shown.append((words, [row["first choice, %"], row["under rules, %"]]))
    return bars("How often the instruction-tuned model's token is the first choice of ..., %",
                [("the base", GREY), ("the base under fitted rules", ORANGE)], shown)
