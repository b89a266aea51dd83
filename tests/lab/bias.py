"""How good can such rules get, and how few weights does an adapter need? (Open questions 11 and 20.)

On the same 1,000 responses, instructions blanked: numbers for the three rules fitted by gradient (a shift for each of V
tokens, the slope of EOS, the penalty on used words), LoRA of rank 1, 4 and 16 on every matrix, one layer, all weights.
The rules once more fitted with instructions kept. Rates (and the rules' weight decay) are chosen on val, on one base.

Expected: fitted rules are better than the hand-written ones, since they can forbid every silence and raise EOS as fast
as answers here end, but remain far below response tuning: a constant shift cannot know which answer is meant, and it
lowers the names that no training response had. LoRA of rank 1 is already near all weights, as the change is small;
it forgets less of the documents. One layer does nearly as well.
Held against: 24.4 (hand-written rules) and 43.3 (all weights) points of win rate; "LoRA learns less and forgets less"
(Biderman et al., 2024).
"""
import random
import statistics
from functools import partial

from data.format import encode_document
from judge import log_likelihoods
from lab.adapters import adapt, fit_rules, trainable
from lab.conditions import graded, made_by, summary, untrained
from lab.lab import load, side_by_side
from lab.svg import BLUE, GREY, Panel, plot, points
from train import n_scored

RATES = {"LoRA, rank 1": (3e-4, 1e-3, 3e-3), "LoRA, rank 4": (3e-4, 1e-3, 3e-3), "LoRA, rank 16": (3e-4, 1e-3, 3e-3),
         "one layer": (1e-4, 3e-4, 1e-3), "all weights": (5e-5, 1e-4, 2e-4)}
DECAYS = (1e-5, 1e-4, 1e-3)  # of the fitted rules' token shifts
FITTED = {"fitted rules": True, "fitted rules, instructions kept": False}  # name: are the instructions blanked?


def condition(base, kind: str, rate: float) -> dict:
    """kind: one of RATES or FITTED. rate: the learning rate, or for fitted rules the decay."""
    if kind in FITTED:
        return {"changed": fit_rules(base.folder, base.pairs(300), FITTED[kind], rate)}
    return {"make": partial(adapt, dialogues=base.pairs(), epochs=2, kind=kind, lr=rate)}


def loss_on_documents(base, model) -> float:
    """The loss per token on 300 documents that the base did not read."""
    rng, (llama, tokenizer) = random.Random("other documents"), load(model)
    documents = [encode_document(tokenizer, base.world.document(rng), 256) for _ in range(base.limit or 300)]
    return -log_likelihoods(llama, documents)[0].sum().item() / sum(map(n_scored, documents))


def choose_rates(base, workers) -> dict[str, float]:
    """The rate or decay with which each kind of adapter is best on val, on one base."""
    tried = [(kind, rate) for kind, rates in (dict.fromkeys(FITTED, DECAYS) | RATES).items() for rate in rates]
    side_by_side({(kind, decay): (1, fit_rules, base.folder, base.pairs(300), blank, decay)
                  for kind, blank in FITTED.items() for decay in DECAYS}, workers)  # kept, so `graded` finds them made
    found = graded([base], {pair: partial(condition, kind=pair[0], rate=pair[1]) for pair in tried}, workers, ("val",))
    chosen, best = {}, {}
    for (kind, rate), (pairs,) in found.items():
        grade = statistics.mean(grade for _, grade in pairs)
        if kind not in best or grade > best[kind]:
            chosen[kind], best[kind] = rate, grade
    return chosen


def run(bases, workers) -> list[dict]:
    chosen = choose_rates(bases[0], workers)
    conditions = {"no adapter": untrained, "rules by hand": partial(untrained, rules=("eos", "tokens", "repeats"))}
    conditions |= {kind: partial(condition, kind=kind, rate=rate) for kind, rate in chosen.items()}
    found, rows = graded(bases, conditions, workers), []
    for kind, grades in found.items():
        model, _ = load(bases[0].folder)
        sizes = {"no adapter": 0, "rules by hand": 17} | dict.fromkeys(FITTED, model.config.vocab_size + 2)
        losses = []
        for base in bases:
            folder = made_by(base, conditions[kind]) if kind in RATES else base.folder
            losses.append(round(loss_on_documents(base, folder), 4))
        rows.append({"adapter": kind, "trained numbers": trainable(model, kind) if kind in RATES else sizes[kind],
                     "rate or decay": f"{chosen[kind]:g}" if kind in chosen else "–",
                     **summary(grades, found["all weights"]), "loss on documents": losses})
    return rows


def draw(rows) -> str:
    rules = [row for row in rows[1:] if row["adapter"] not in RATES]
    weights = [row for row in rows[1:] if row["adapter"] in RATES]

    def panel(title, column, y_range):
        groups = [("rules", GREY, points(rules, "trained numbers", column)),
                  ("weights", BLUE, points(weights, "trained numbers", column))]
        return Panel(title, groups, "trained numbers", y_range=y_range, joined=False, log=True, x_range=(10, 1e7),
                     x_marks={10.0**i: f"1e{i}" for i in range(1, 8)})

    losses = [loss for row in rows[1:] for loss in row["loss on documents"]]
    return plot("What is trained, what it brings, and what it forgets", [
        panel("Mean grade, %", "grade", (0, 100)),
        panel("Loss on documents, nats per token", "loss on documents", (min(losses) - 0.05, max(losses) + 0.05))])
