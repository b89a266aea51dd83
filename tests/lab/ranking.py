"""Does ranking foretell following? (Open question 8; section 4.2.)

Along pretraining, the base ranks each right response against other instructions' responses and against the silences of
the world's pages; then it is response-tuned and graded. Per family: does a family whose responses rank high follow?

Expected: ranking against other responses is near its ceiling as soon as names are copied, early, when response tuning
still gets little right, so it foretells nothing there. Ranking against silences grows with the dose of a family and
foretells its grade. Along pretraining both rise together; the step is where held-out facts are learned.
Held against: a base that ranks 80.4 % right and wins 43.3 % when response-tuned (Llama-2-7B), 74.5 and 43.7 (OLMo-7B).
"""
import statistics
from dataclasses import replace
from functools import partial

from data.common import read_json, write_json
from data.format import dialogue
from judge import others_of, rank_responses
from lab.conditions import graded, spearman
from lab.lab import DOCUMENTS, STAGES, identity, kept, load, pretrain, side_by_side, tune
from lab.svg import BLUE, ORANGE, Panel, plot


def ranked(base) -> dict[str, list[float]]:
    """{family: [how often its right response is likelier than others', than silences, %]} by total log-probability."""
    def make(folder):
        (model, tokenizer), tasks, rates = load(base.folder), base.tasks("eval"), {}
        others = others_of([(task.instruction, task.response) for task in tasks])
        for family in dict.fromkeys(task.family for task in tasks):
            own = [(task, some) for task, some in zip(tasks, others) if task.family == family]
            rates[family] = [rank_responses(model, tokenizer, rows)["total"] for rows in (
                [(task.instruction, task.response, some) for task, some in own],
                [(task.instruction, task.response, task.silences) for task, _ in own])]
        write_json(folder / "ranked.json", rates)

    made = kept("ranked", [identity(base.folder), base.seed, base.most], make)
    return read_json(made / "ranked.json", "remove its folder")


def on(base):
    pairs = [dialogue(task.instruction, task.response) for task in base.examples()]
    return {"make": partial(tune, dialogues=pairs, epochs=2, blank=True)}


def run(bases, workers) -> list[dict]:
    made = side_by_side({("pretraining", base.seed): (
        1, pretrain, bases[0].folder / "config.json", base.world, base.most or DOCUMENTS, base.seed) for base in bases},
        workers)
    rows = []
    for share in (*STAGES, 1):
        stages = [replace(base, folder=made["pretraining", base.seed] / (f"1-{1 / share:.0f}" if share < 1 else ""))
                  for base in bases]
        ranks = list(side_by_side({(share, base.seed): (1, ranked, base) for base in stages}, workers).values())
        grades = graded(stages, {f"after {share:g} of pretraining": on}, workers)[f"after {share:g} of pretraining"]
        points = []
        for base, rates, pairs in zip(stages, ranks, grades):
            points.append([[*rate, round(100 * statistics.mean(pair[1] for pair, task in zip(pairs, base.tasks("eval"))
                                                               if task.family == family), 2)]
                           for family, rate in rates.items()])
        columns = [list(zip(*of_base)) for of_base in points]
        rows.append({"documents": f"{100 * share:.0f} %", **{
            name: [round(statistics.mean(column[i]), 2) for column in columns]
            for i, name in enumerate(("above others", "above silences", "grade when response-tuned"))}, **{
            f"correlation over families, {name}": [round(100 * spearman(column[i], column[2]), 1) for column in columns]
            for i, name in enumerate(("others", "silences"))}, "points": points})
    return rows


def draw(rows) -> str:
    stages = [float(row["documents"].split()[0]) for row in rows]
    last = [point for of_base in rows[-1]["points"] for point in of_base]
    return plot("Ranking by the base, and grade after response tuning", [
        Panel("Along pretraining: mean over families, %", [
            (words, color, [(x, row[column]) for x, row in zip(stages, rows)]) for words, color, column in (
                ("ranked above others", ORANGE, "above others"), ("above silences", BLUE, "above silences"),
                ("grade when tuned", "#000000", "grade when response-tuned"))], "documents read, %", log=True),
        Panel("Each family of the whole bases", [
            ("above others", ORANGE, [(x, grade) for x, _, grade in last]),
            ("above silences", BLUE, [(x, grade) for _, x, grade in last])], "ranked above, %", joined=False,
              x_range=(0, 100))])
