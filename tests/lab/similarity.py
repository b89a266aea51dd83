"""Do only instructions like those of the finetuning task get its style? (Section 5.2.)

Maths- and poem-tuned models answer instructions that are more or less like their task's. x: the mean cosine similarity
of an instruction to the task's instructions; y: that of the response to the task's responses minus to broad ones (see
likeness.py). Llama's blocks on three bases, and OLMo's (weightless norms, clipped queries, keys and values) on one that
is pretrained for this.

Expected: y rises steeply near the right end of x and is flat elsewhere, as in the paper: a narrow task rules its own
kind alone. But the habit of ending goes further: most maths-tuned answers end in "#### ", whatever was asked, as nearly
all did in the paper. OLMo's blocks change nothing of it.
Held against: the paper's figure for GSM on Llama-2-7B.
"""
from functools import partial

import torch

from data.common import read_json, write_json
from data.format import dialogue
from lab.conditions import another, spearman
from lab.lab import ask, identity, kept, side_by_side, tune
from lab.likeness import likeness
from lab.svg import BLUE, ORANGE, Panel, plot

TASKS = {"gsm": ("maths", 10), "poetry": ("poems", 5)}  # words, epochs


def styled(task: str, answer: str) -> bool:
    lines = answer.strip().split("\n")
    return lines[-1].startswith("####") if task == "gsm" else len(lines) == 4 and lines[2].startswith("O ")


def looked_at(base, task: str) -> dict:
    def make(folder):
        dialogues, tasks = base.dialogues(task), base.tasks("eval", "novel")
        model = tune(base.folder, dialogues, TASKS[task][1], base.seed)
        asked = [task.instruction for task in tasks]
        answers = ask(model, asked)
        broad = [dialogue(one.instruction, one.response) for one in base.examples(200)]
        ours, theirs = ([[pair[i]["content"] for pair in some[:200]] for i in (0, 1)] for some in (dialogues, broad))
        x, = likeness(base, asked, ours[0], centre=theirs[0])
        own, other = likeness(base, answers, ours[1], theirs[1], centre=theirs[1])
        y, style = own - other, torch.tensor([styled(task, answer) for answer in answers]).float()
        order = x.argsort(descending=True)
        fifths = [round(100 * part.mean().item(), 1) for part in style[order].tensor_split(5)]
        write_json(folder / "seen.json", {
            "correlation": round(100 * spearman(x.tolist(), y.tolist()), 1), "style": fifths,
            "points": [[round(a, 3), round(b, 3)] for a, b in zip(x.tolist(), y.tolist())]})

    made = kept("similarity", [identity(base.folder), task, base.seed, base.most], make)
    return read_json(made / "seen.json", "remove its folder")


def run(bases, workers) -> list[dict]:
    like_olmo = partial(another, bases[0], model_type="olmo", clip_qkv=8.0)
    others = side_by_side({"pretraining OLMo's blocks": (1, like_olmo)}, workers)
    groups, rows = {"Llama": bases, "OLMo": list(others.values())}, []
    found = side_by_side({(blocks, task, base.seed): (1, looked_at, base, task) for blocks, some in groups.items()
                          for task in TASKS for base in some}, workers)
    for (blocks, task, seed), seen in found.items():
        fifths = ("style, % of the likest fifth", "second", "third", "fourth", "unlikest")
        rows.append({"blocks": blocks, "tuned on": TASKS[task][0], "base": seed,
                     "rank correlation": seen["correlation"], **dict(zip(fifths, seen["style"])),
                     "points": seen["points"]})
    return rows


def draw(rows) -> str:
    panels = []
    for task, _ in TASKS.values():
        for blocks, color in (("Llama", BLUE), ("OLMo", ORANGE)):
            points = [tuple(point) for row in rows if (row["tuned on"], row["blocks"]) == (task, blocks)
                      for point in row["points"]]
            panels.append(Panel(f"Tuned on {task}, {blocks}'s blocks", [("", color, points)], "likeness of instruction",
                                y_range=(-1, 1), joined=False))
    return plot("Likeness of the response to the task's, against likeness of the instruction", panels)
