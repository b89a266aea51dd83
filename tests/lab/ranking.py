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

from judge import others_of, rank_responses
from lab.conditions import graded, of_families, on_each, remembered, spearman, summary, tuned, with_stages
from lab.lab import STAGES, load
from lab.svg import BLACK, BLUE, ORANGE, Panel, plot

MEASURES = ("above others", "above silences", "grade when response-tuned")


def ranked(base) -> dict[str, list[float]]:
    """{family: [how often its right response is likelier than others', than silences, %]} by total log-probability."""
    (model, tokenizer), tasks, rates = load(base.folder), base.tasks("eval"), {}
    others = others_of([(task.instruction, task.response) for task in tasks])
    for family in dict.fromkeys(task.family for task in tasks):
        above_others, above_silences = [], []
        for task, responses in zip(tasks, others):
            if task.family == family:
                above_others.append((task.instruction, task.response, responses))
                above_silences.append((task.instruction, task.response, task.silences))
        rates[family] = [rank_responses(model, tokenizer, rows)["total"] for rows in (above_others, above_silences)]
    return rates


def run(bases, workers) -> list[dict]:
    wholes, rows = with_stages(bases, workers), []
    for share in (*STAGES, 1):
        folder = f"1-{1 / share:.0f}" if share < 1 else ""
        stages = [replace(base, folder=base.folder / folder) for base in wholes]
        ranks, = on_each(stages, {share: (1, remembered, "ranked", ranked)}, workers).values()
        name = f"after {share:g} of pretraining"
        grades = graded(stages, {name: partial(tuned, method="response", epochs=2)}, workers)[name]

        # For each base, each family's three MEASURES.
        points = [[list(rates) for rates in of_base.values()] for of_base in ranks]
        for i, family in enumerate(ranks[0]):
            for of_base, grade in zip(points, summary(of_families([family], grades, stages))["grade"]):
                of_base[i].append(grade)

        # Their means over families, and how the first two go with the third over families.
        row = {"documents": f"{100 * share:.0f} %"} | {name: [] for name in MEASURES}
        row |= {"correlation over families, others": [], "correlation over families, silences": []}
        for of_base in points:
            others, silences, grade = zip(*of_base)
            correlations = [round(100 * spearman(column, grade), 1) for column in (others, silences)]
            means = [round(statistics.mean(column), 2) for column in (others, silences, grade)]
            for name, value in zip(list(row)[1:], means + correlations):
                row[name].append(value)
        rows.append(row | {"points": points})
    return rows


def draw(rows) -> str:
    documents = [float(row["documents"].split()[0]) for row in rows]
    along = []
    for words, color, measure in zip(("ranked above others", "above silences", "grade when tuned"),
                                     (ORANGE, BLUE, BLACK), MEASURES):
        along.append((words, color, [(x, row[measure]) for x, row in zip(documents, rows)]))
    last = [point for of_base in rows[-1]["points"] for point in of_base]
    families = [("above others", ORANGE, [(x, grade) for x, _, grade in last]),
                ("above silences", BLUE, [(x, grade) for _, x, grade in last])]
    return plot("Ranking by the base, and grade after response tuning", [
        Panel("Along pretraining: mean over families, %", along, "documents read, %", log=True),
        Panel("Each family of the whole bases", families, "ranked above, %", joined=False, x_range=(0, 100))])
