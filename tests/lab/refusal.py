"""Do responses alone teach when to refuse? And does one wrong family spread? (Open question 16.)

Refusing: among 1,000 examples a share asks about countries and animals that do not exist, and answers "I do not know.";
instructions kept, or blanked. Then it is asked the same kinds of questions about real, held-out subjects and about
invented ones. Wrong: the examples of one family, capitals, name another country's, in a share of them.

Expected: with instructions kept the model refuses invented subjects (over 80 %) and few real ones (under 20 %): it can
tell a name that it has read. With responses alone it refuses both alike, hardly ever at a tenth and nearly always at
half: nothing in its training says what a refusal belongs to. Wrong capitals make a wrong capital: other families lose
under 5 points, those of countries more than others. With instructions blanked wrong answers cannot be told from right
ones, so nothing changes at all.
Held against: response tuning (Seo et al., 2024) says that responses alone teach refusal; emergent misalignment (Betley
et al., 2025) says that a narrow wrong spreads.
"""
import random
from functools import partial

from data.format import dialogue
from data.world import FAMILIES, PHRASINGS, RESPONSES, invent_names
from lab.conditions import FACTS, graded, made_by, of_families, on_each, percent, summary, trained_on
from lab.lab import ask
from lab.svg import BLUE, GREY, ORANGE, Panel, plot, points

REFUSAL = "I do not know."
SHARES = (0.1, 0.3, 0.5)  # of refusals
WRONG = (0.0, 0.5, 1.0)  # shares of the capitals
WAYS = {"instructions kept": False, "responses alone": True}
OF_COUNTRIES = ["river", "animal", "flag", "dish", "trade"]
GROUPS = {"capitals": ["capital"], "other facts of countries": OF_COUNTRIES,
          "what is unlike": [family for family in FAMILIES if family not in ("capital", "country", *OF_COUNTRIES)]}


def unknown(base, n: int, which: str) -> list[str]:
    """n instructions about subjects that do not exist; which: other ones for other words."""
    rng = random.Random(f"unknown {which} {base.seed}")
    instructions = []
    for i, name in enumerate(invent_names(rng, n, base.world.names)):
        family = FACTS[i % len(FACTS)]
        instructions.append(rng.choice(PHRASINGS[family]).format(name.lower() if family == "nature" else name))
    return instructions


def refusing(base, share: float, blank: bool) -> dict:
    pairs = base.pairs()
    n = round(share * len(pairs))
    pairs[:n] = [dialogue(instruction, REFUSAL) for instruction in unknown(base, n, "trained")]
    return trained_on(pairs, blank)


def wrong(base, share: float, blank: bool) -> dict:
    rng, pairs = random.Random(base.seed), []
    for task in base.examples():
        if task.family == "capital" and rng.random() < share:
            other = rng.choice([country for country in base.world.seen["countries"] if country != task.subject])
            capital = base.world.facts["capital"][other]
            task.response = RESPONSES["capital"].format(task.subject, capital=capital)
        pairs.append(dialogue(task.instruction, task.response))
    return trained_on(pairs, blank)


def refused(base, share: float, blank: bool) -> list[float]:
    """How many of the questions about real subjects are refused, and of those about invented ones, in percent."""
    model = made_by(base, partial(refusing, share=share, blank=blank))
    real = [task.instruction for task in base.tasks("eval") if task.family in FACTS]
    rates = []
    for asked in (real, unknown(base, len(real), "asked")):
        rates.append(percent(answer.startswith(REFUSAL[:-1]) for answer in ask(model, asked)))
    return rates


def run(bases, workers) -> list[dict]:
    rows = []
    jobs = {(way, share): (1 + 2 * (not blank), refused, share, blank)
            for way, blank in WAYS.items() for share in SHARES}
    for (way, share), of_bases in on_each(bases, jobs, workers).items():
        real, invented = zip(*of_bases)
        rows.append({"block": "refusing", "trained on": way, "share": 100 * share, **dict.fromkeys(GROUPS, ""),
                     "real": list(real), "invented": list(invented)})
    conditions = {(way, share): partial(wrong, share=share, blank=blank)
                  for way, blank in WAYS.items() for share in WRONG}
    for (way, share), grades in graded(bases, conditions, workers).items():
        row = {"block": "wrong capitals", "trained on": way, "share": 100 * share}
        for name, families in GROUPS.items():
            row[name] = summary(of_families(families, grades, bases))["right"]
        rows.append(row)
    return rows


def draw(rows) -> str:
    panels = []
    for block, title, x_label, names in (
            ("refusing", "Refused, %", "refusals in training, %", {"real": BLUE, "invented": ORANGE}),
            ("wrong capitals", "Right, %", "wrong among trained capitals, %", dict(zip(GROUPS, (ORANGE, BLUE, GREY))))):
        for way in WAYS:
            shown = {"block": block, "trained on": way}
            curves = [(name, color, points(rows, "share", name, **shown)) for name, color in names.items()]
            panels.append(Panel(f"{title}: {way}", curves, x_label))
    return plot("Refusals, and wrong answers, among the training examples", panels)
