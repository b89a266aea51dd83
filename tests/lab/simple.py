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
from data.common import read_json, write_json
from data.format import IGNORE, dialogue, encode
from lab.adapters import fit_rules
from lab.conditions import WAYS
from lab.lab import ask, identity, kept, load, set_numbers, side_by_side
from lab.svg import GREY, ORANGE, bars

PLACES = ["first", "second", "third", "later", "EOS"]


def measured(base) -> dict[str, list]:
    """{place: [tokens, nats before, nats under rules, first choices before, under rules]}, sums over tokens."""
    def make(folder):
        tuned = WAYS["instruction tuning"](base)["make"](base.folder, seed=base.seed)
        asked = [task.instruction for task in base.tasks("eval")]
        pairs = [dialogue(*pair) for pair in zip(asked, ask(tuned, asked))]
        numbers = fit_rules(base.folder, pairs[::2], False, 1e-4)
        (model, tokenizer), (other, _) = load(base.folder), load(tuned)
        rules = Adapter(tokenizer, model.config.vocab_size)
        set_numbers(rules, numbers)
        sums = {place: [0.0] * 5 for place in PLACES}
        for messages in pairs[1::2]:
            ids, labels = map(torch.tensor, encode(tokenizer, messages, model.config.context))
            for n, (token, numbers_of) in enumerate(along(model, other, rules, ids, labels)):
                place = "EOS" if token == tokenizer.eos_id else PLACES[min(n, 3)]
                sums[place] = [a + b for a, b in zip(sums[place], numbers_of)]
        write_json(folder / "simple.json", sums)

    made = kept("simple", [identity(base.folder), base.seed, base.most], make)
    return read_json(made / "simple.json", "remove its folder")


@torch.inference_mode()
def along(model, tuned, rules, ids, labels):
    """For each token of an answer: the token, and [1, nats to the base, to base and rules, first choice of each].

    ids, labels: (T,) int64, of a dialogue as `encode` gives it.
    """
    at = (labels[1:] != IGNORE).nonzero()[:, 0]  # the places from which a token of the answer is predicted
    wanted = tuned(ids[None, :-1])[0, at].log_softmax(-1)  # (N, V)
    scores, seen = model(ids[None, :-1])[0, at], rules.seen_at_first([[]])
    for n, token in enumerate(labels[at + 1].tolist()):
        both = [scores[n], scores[n] + rules.scores(seen, n)[0]]
        nats = [F.kl_div(some.log_softmax(-1), wanted[n], log_target=True, reduction="sum").item() for some in both]
        yield token, [1, *nats, *(float(some.argmax() == token) for some in both)]
        seen[0, token] = True


def run(bases, workers) -> list[dict]:
    found, rows = list(side_by_side({(base.seed,): (1, measured, base) for base in bases}, workers).values()), []
    for place in [*PLACES, "all"]:
        sums = [[sum(column) for column in zip(*of_base.values())] if place == "all" else of_base[place]
                for of_base in found]
        whole = [sum(some[1] for some in of_base.values()) for of_base in found]
        of_all = [round(100 * some[1] / total, 1) for some, total in zip(sums, whole)]
        rows.append({"place": place, "tokens": sum(int(some[0]) for some in sums), "share of the nats": of_all} | {
            name: [round(100 * some[i] / max(some[0], 1), 2) for some in sums] for i, name in enumerate((
                "nats per 100 tokens", "under rules", "first choice, %", "under rules, %"), 1)})
    return rows


def draw(rows) -> str:
    return bars("How often the instruction-tuned model's token is the first choice of ..., %",
                [("the base", GREY), ("the base under fitted rules", ORANGE)],
                [(f"{row['place']} token" if row["place"] in PLACES[:3] else row["place"],
                  [row["first choice, %"], row["under rules, %"]]) for row in rows])
