"""Which rules does it take, and what does complexity buy? (Open questions 4 and 10; Table 4.)

The base under all eight sets of the three rules; under all of them, but without one of rule 2's tokens; with a rule's
weight halved, doubled and times four. Then the single parts (the EOS ramp, the penalty on used words, each token of
rule 2) are put together in the order in which leaving them out costs, until nothing is left to gain.

Expected: "What" is nearly all of rule 2, since this world's silences begin with it, and with the EOS ramp it makes the
smallest set that is as good as all of them: two rules where the paper has seventeen. Rule 3 costs: answers repeat their
subject and are too short to loop. A steeper ramp helps, since answers here have 15 tokens and not 250.
Held against: 24.4 points of win rate for all, 10.4, 14.3 and 16.3 without one (Llama-2-7B).
"""
from functools import partial
from itertools import combinations

from adapter import EOS_SLOPE, REPEAT_PENALTY, RULES, TOKEN_SHIFTS, token_id
from lab.conditions import graded, summary
from lab.lab import load
from lab.svg import BLUE, bars


def condition(base, eos: float = 1, tokens: dict = TOKEN_SHIFTS, repeats: float = 1, scale: float = 1) -> dict:
    """The rules with other numbers: factors of rule 1 and rule 3, the tokens of rule 2, a factor of their shifts."""
    model, tokenizer = load(base.folder)
    shift = [0.0] * model.config.vocab_size
    for text, value in tokens.items():
        if (i := token_id(tokenizer.bpe, text)) is not None:
            shift[i] = value * scale
    return {"changed": {"eos_slope": EOS_SLOPE * eos, "repeat_penalty": REPEAT_PENALTY * repeats,
                        "token_shift": shift}}


def parts(names) -> dict:
    """The arguments of `condition` for some single parts: "eos", "repeats", and tokens of rule 2."""
    return {"eos": float("eos" in names), "repeats": float("repeats" in names),
            "tokens": {text: shift for text, shift in TOKEN_SHIFTS.items() if text in names}}


def run(bases, workers) -> list[dict]:
    rows = []

    def graded_rows(block, numbers, reference=None):
        """Add the rows of a block. numbers: {name: arguments of `condition`}. Returns the block's grades."""
        found = graded(bases, {name: partial(condition, **given) for name, given in numbers.items()}, workers)
        for name, grades in found.items():
            rows.append({"block": block, "rules": name, **summary(grades, reference or list(found.values())[0])})
        return found

    # All sets of rules; the first has all of them, with which everything is compared.
    sets = {}
    for n in (3, 2, 1, 0):
        for rules in combinations(RULES, n):
            names = [*rules, *TOKEN_SHIFTS] if "tokens" in rules else rules
            sets[" + ".join(rules) or "none"] = parts(names)
    everything = graded_rows("sets", sets)["eos + tokens + repeats"]

    # One part left out, and one rule's weight changed.
    whole = ["eos", "repeats", *TOKEN_SHIFTS]
    without = {f"without {text!r}": parts([part for part in whole if part != text]) for text in whole}
    graded_rows("one part left out", without, everything)
    scaled = {}
    for rule, name in (("rule 1", "eos"), ("rule 2", "scale"), ("rule 3", "repeats")):
        scaled |= {f"{rule} × {factor:g}": {name: factor} for factor in (0.5, 2, 4)}
    graded_rows("a rule's weight", scaled, everything)

    # The parts put together, that whose absence costs most first.
    cost = {row["rules"]: row["difference"][0] for row in rows}
    order = sorted(whole, key=lambda part: cost[f"without {part!r}"])
    growing = {}
    for n, part in enumerate(order[:8], 1):
        growing[f"{n}: " + "and " * (n > 1) + repr(part)] = parts(order[:n])
    graded_rows("put together, the costliest first", growing, everything)
    return rows


def draw(rows) -> str:
    """Without the parts that change nothing when they are left out."""
    shown = [row for row in rows if row["block"] != "one part left out" or abs(row["difference"][0]) >= 0.05]
    return bars("The base model under rules: mean grade, %", [("grade", BLUE)],
                [(row["rules"], [row["grade"]]) for row in shown], limit=40)
