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
import statistics
from functools import partial

from data.format import dialogue
from data.world import FAMILIES, RESPONSES, PHRASINGS, invent_names
from lab.conditions import graded
from lab.lab import ask, side_by_side, tune
from lab.svg import BLUE, GREY, ORANGE, Panel, plot

FACTS = ["capital", "river", "animal", "flag", "dish", "trade", "nature"]
REFUSAL = "I do not know."
SHARES = (0.1, 0.3, 0.5)  # of refusals
WRONG = (0.0, 0.5, 1.0)  # shares of the capitals
GROUPS = {"capitals": ["capital"], "other facts of countries": ["river", "animal", "flag", "dish", "trade"],
          "what is unlike": [family for family in FAMILIES if family not in FACTS and family != "country"] + ["nature"]}


def unknown(base, n: int, which: str) -> list[str]:
    """n instructions about subjects that do not exist; which: other ones for other words."""
    rng = random.Random(f"unknown {which} {base.seed}")
    names = invent_names(rng, n, base.world.names)
    families = [FACTS[i % len(FACTS)] for i in range(n)]
    return [rng.choice(PHRASINGS[family]).format(name.lower() if family == "nature" else name)
            for family, name in zip(families, names)]


def refusing(share: float, blank: bool):
    def on(base):
        pairs = [dialogue(task.instruction, task.response) for task in base.examples()]
        n = round(share * len(pairs))
        pairs[:n] = [dialogue(instruction, REFUSAL) for instruction in unknown(base, n, "trained")]
        return partial(tune, dialogues=pairs, epochs=2 if blank else 5, blank=blank)
    return on


def wrong(share: float, blank: bool):
    def on(base):
        rng, pairs = random.Random(base.seed), []
        for task in base.examples():
            if task.family == "capital" and rng.random() < share:
                other = rng.choice([country for country in base.world.seen["countries"] if country != task.subject])
                capital = base.world.facts["capital"][other]
                task.response = RESPONSES["capital"].format(task.subject, capital=capital)
            pairs.append(dialogue(task.instruction, task.response))
        return {"make": partial(tune, dialogues=pairs, epochs=2 if blank else 5, blank=blank)}
    return on


def refused(base, make) -> list[float]:
    """How many of the questions about real subjects are refused, and of those about invented ones, in percent."""
    model = make(base.folder, seed=base.seed)
    real = [task.instruction for task in base.tasks("eval") if task.family in FACTS]
    return [round(100 * statistics.mean(answer.startswith(REFUSAL[:-1]) for answer in ask(model, asked)), 2)
            for asked in (real, unknown(base, len(real), "asked"))]


def run(bases, workers) -> list[dict]:
    ways = {"instructions kept": False, "responses alone": True}
    found = side_by_side({(way, share, base.seed): (1 + 2 * (not blank), refused, base, refusing(share, blank)(base))
                          for way, blank in ways.items() for share in SHARES for base in bases}, workers)
    none = dict.fromkeys(GROUPS, "")
    rows = [{"block": "refusing", "trained on": way, "share": 100 * share, **none} | {
        name: [found[way, share, base.seed][i] for base in bases] for i, name in enumerate(("real", "invented"))}
        for way in ways for share in SHARES]
    conditions = {(way, share): wrong(share, blank) for way, blank in ways.items() for share in WRONG}
    grades = graded(bases, conditions, workers)
    for (way, share), of_bases in grades.items():
        rows.append({"block": "wrong capitals", "trained on": way, "share": 100 * share} | {
            name: [round(100 * statistics.mean(pair[0] for pair, task in zip(pairs, base.tasks("eval"))
                                               if task.family in families), 2)
                   for pairs, base in zip(of_bases, bases)] for name, families in GROUPS.items()})
    return rows


def draw(rows) -> str:
    def curves(block, way, names):
        return [(name, color, [(row["share"], row[name]) for row in rows
                               if (row["block"], row["trained on"]) == (block, way)]) for name, color in names.items()]

    subjects, families = {"real": BLUE, "invented": ORANGE}, dict(zip(GROUPS, (ORANGE, BLUE, GREY)))
    return plot("Refusals, and wrong answers, among the training examples", [
        Panel(f"Refused, %: {way}", curves("refusing", way, subjects), "refusals in training, %")
        for way in ("instructions kept", "responses alone")] + [
        Panel(f"Right, %: {way}", curves("wrong capitals", way, families), "wrong among trained capitals, %")
        for way in ("instructions kept", "responses alone")])
