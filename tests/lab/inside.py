"""Is implicit tuning the same change as explicit tuning? (Open question 1.)

The change of the weights by response tuning, layer by layer: its cosine with that by instruction tuning, by response
tuning with another order of the data, by poems, code and chess. The hidden states at the answer's first token, alike
by linear CKA. And base + a × change for a from 0.25 to 1.5, for response tuning and for poems; the sum of two tasks'
changes; response tuning's change of a base that had read half of the documents, added to the finished base.

Expected: the changes by responses and by instructions have a cosine of about 0.6, less than two orders of the data
(0.9), more than any single task (poems 0.3, chess 0.1); chess's are of the same size. CKA sees less difference: over
0.9 for all but chess. Half of the change is too little, since the grade is a threshold; a = 1.5 is no worse than 1. The
sum of poems and code is above either. The change of half a base works on the whole one: it is a chat vector.
Held against: task arithmetic (Ilharco et al., 2023); chat vectors (Huang et al., 2024).
"""
from dataclasses import replace

from lab.conditions import WAYS, summary, tuned
from lab.lab import DOCUMENTS, pretrain, side_by_side
from lab.svg import BLACK, BLUE, GREEN, ORANGE, PINK, SKY, Panel, plot
from lab.vectors import compared, moved

OTHERS = {  # what response tuning is compared with, and its colour
    "another order": (tuned("response", 2), SKY), "instruction tuning": (WAYS["instruction tuning"], BLUE),
    "poems": (WAYS["poems alone"], PINK), "code": (tuned("mbpp", 5), GREEN), "chess": (tuned("chess", 5), BLACK),
}
FACTORS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
HALF = "half a base"


def made_of(base, way: str):
    """The folder of the base tuned in one of the ways of OTHERS, or by responses."""
    make = (OTHERS[way][0] if way in OTHERS else WAYS[way])(base)["make"]
    return make(base.folder, seed=base.seed + 100 * (way == "another order"))


def run(bases, workers) -> list[dict]:
    whole = side_by_side({("pretraining", base.seed): (1, pretrain, bases[0].folder / "config.json", base.world,
                                                       base.most or DOCUMENTS, base.seed) for base in bases}, workers)
    wholes = [replace(base, folder=folder) for base, folder in zip(bases, whole.values())]
    halves = [replace(base, folder=base.folder / "1-2") for base in wholes]
    asked = {(way, base.seed): base for way in ("response tuning", *OTHERS) for base in bases}
    asked |= {(HALF, base.seed): base for base in halves} | {("whole", base.seed): base for base in wholes}
    made = side_by_side({(way, seed): (1, made_of, base, way if way in OTHERS else "response tuning")
                         for (way, seed), base in asked.items()}, workers)
    changes = {at: (base.folder, made[at]) for at, base in asked.items()}  # of weights: from, to
    alike = side_by_side({(way, base.seed): (
        1, compared, base, made["response tuning", base.seed], made[way, base.seed])
        for way in OTHERS for base in bases}, workers)
    sums = {(f"base + a × {way}", f"{a:g}"): (bases, a, [way])
            for way in ("response tuning", "poems") for a in FACTORS}
    sums |= {("sums", "code"): (bases, 1, ["code"]), ("sums", "poems + code"): (bases, 1, ["poems", "code"]),
             (HALF, "and its change"): (halves, 1, [HALF]), (HALF, "its change on the whole"): (wholes, 1, [HALF]),
             (HALF, "the whole and its change"): (wholes, 1, ["whole"])}
    found = side_by_side({(*name, base.seed): (1, moved, base, a, [changes[way, base.seed] for way in ways])
                          for name, (some, a, ways) in sums.items() for base in some}, workers)
    blank = dict.fromkeys(("cosine", "CKA", "length", "right", "grade"), "")
    rows = []
    for way in OTHERS:
        some = [alike[way, base.seed] for base in bases]
        rows.append({"block": "change by responses and by", "what": way, **blank} | {
            name: [each[name] for each in some] for name in ("cosine", "CKA", "length")} | {
            "points": [each["by layer"] for each in some]})
    return rows + [{"block": block, "what": what, **blank, **summary([found[block, what, base.seed] for base in bases])}
                   for block, what in sums]


def draw(rows) -> str:
    compared = [row for row in rows if "points" in row]
    parts = range(len(compared[0]["points"][0]))
    return plot("The change by response tuning, and the changes by others", [
        Panel("Cosine with response tuning's change, %", [
            (row["what"], OTHERS[row["what"]][1], [(i, [of_base[i] for of_base in row["points"]]) for i in parts])
            for row in compared], "part of the model", x_marks={i: f"layer {i}" if i else "tokens" for i in parts}),
        Panel("Mean grade of base + a × change, %", [
            (way, color, [(float(row["what"]), row["grade"]) for row in rows if row["block"] == f"base + a × {way}"])
            for way, color in (("response tuning", ORANGE), ("poems", PINK))], "a")])
