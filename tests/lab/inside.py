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
from functools import partial

from lab.conditions import WAYS, made_by, on_each, remembered, summary, tuned, with_stages
from lab.lab import side_by_side
from lab.svg import BLACK, BLUE, GREEN, ORANGE, PINK, SKY, Panel, plot, points
from lab.vectors import compared, moved

RESPONSES = "response tuning"
OTHERS = {  # what response tuning is compared with, and its colour
    "another order": (partial(tuned, method="response", epochs=2), SKY),
    "instruction tuning": (WAYS["instruction tuning"], BLUE), "poems": (WAYS["poems alone"], PINK),
    "code": (partial(tuned, method="mbpp", epochs=5), GREEN),
    "chess": (partial(tuned, method="chess", epochs=5), BLACK),
}
FACTORS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
HALF = "half a base"


def made(base, way: str):
    """The folder of the base tuned in one of the ways of OTHERS, or by responses."""
    condition = OTHERS[way][0] if way in OTHERS else WAYS[RESPONSES]
    return made_by(base, condition, base.seed + 100 * (way == "another order"))


def run(bases, workers) -> list[dict]:
    # What each kind of tuning makes of the bases, and response tuning of half and of whole bases.
    wholes = with_stages(bases, workers)
    halves = [replace(base, folder=base.folder / "1-2") for base in wholes]
    folders = on_each(bases, {way: (1, made, way) for way in (RESPONSES, *OTHERS)}, workers)
    folders |= on_each(halves, {HALF: (1, made, RESPONSES)}, workers)
    folders |= on_each(wholes, {"whole": (1, made, RESPONSES)}, workers)
    changes = {}  # {name: [(from, to) on each base]}
    for name, tuned_folders in folders.items():
        before = {HALF: halves, "whole": wholes}.get(name, bases)
        changes[name] = [(base.folder, after) for base, after in zip(before, tuned_folders)]

    # The changes of the weights beside each other.
    alike = side_by_side({(way, base.seed): (1, remembered, base, "compared", compared, one, other)
                          for way in OTHERS
                          for base, one, other in zip(bases, folders[RESPONSES], folders[way])}, workers)
    rows, blank = [], dict.fromkeys(("cosine", "CKA", "length", "right", "grade"), "")
    for way in OTHERS:
        found = [alike[way, base.seed] for base in bases]
        row = {"block": "change by responses and by", "what": way, **blank}
        row |= {name: [each[name] for each in found] for name in ("cosine", "CKA", "length")}
        rows.append(row | {"points": [each["by layer"] for each in found]})

    # The changes added to bases: to which, how many times, which changes.
    sums = {(f"base + a × {way}", f"{a:g}"): (bases, a, [way]) for way in (RESPONSES, "poems") for a in FACTORS}
    sums |= {("sums", "code"): (bases, 1, ["code"]), ("sums", "poems + code"): (bases, 1, ["poems", "code"]),
             (HALF, "and its change"): (halves, 1, [HALF]), (HALF, "its change on the whole"): (wholes, 1, [HALF]),
             (HALF, "the whole and its change"): (wholes, 1, ["whole"])}
    jobs = {}
    for name, (to, a, added) in sums.items():
        for i, base in enumerate(to):
            jobs[name, base.seed] = (1, moved, base, a, [changes[way][i] for way in added])
    grades = side_by_side(jobs, workers)
    for name in sums:
        of_bases = summary([grades[name, base.seed] for base in bases])
        rows.append({"block": name[0], "what": name[1], **blank, **of_bases})
    return rows


def draw(rows) -> str:
    by_layer = []
    for row in rows:
        if "points" in row:
            parts = zip(*row["points"])  # (bases, parts) to (parts, bases)
            by_layer.append((row["what"], OTHERS[row["what"]][1], [(i, list(part)) for i, part in enumerate(parts)]))
    marks = {i: f"layer {i}" if i else "tokens" for i, _ in by_layer[0][2]}
    by_factor = []
    for way, color in ((RESPONSES, ORANGE), ("poems", PINK)):
        curve = points(rows, "what", "grade", block=f"base + a × {way}")
        by_factor.append((way, color, [(float(a), grade) for a, grade in curve]))
    return plot("The change by response tuning, and the changes by others", [
        Panel("Cosine with response tuning's change, %", by_layer, "part of the model", x_marks=marks),
        Panel("Mean grade of base + a × change, %", by_factor, "a")])
