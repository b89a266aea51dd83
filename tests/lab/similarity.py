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

from lab.conditions import another, on_each, remembered, spearman
from lab.lab import ask, tune
from lab.likeness import likeness
from lab.svg import BLUE, ORANGE, Panel, plot

TASKS = {"gsm": ("maths", 10), "poetry": ("poems", 5)}  # words, epochs
FIFTHS = ("style, % of the likest fifth", "second", "third", "fourth", "unlikest")


def styled(task: str, answer: str) -> bool:
    lines = answer.strip().split("\n")
    return lines[-1].startswith("####") if task == "gsm" else len(lines) == 4 and lines[2].startswith("O ")


def looked_at(base, task: str, epochs: int) -> dict:
    # What the tuned model answers.
    dialogues, asked = base.dialogues(task), [one.instruction for one in base.tasks("eval", "novel")]
    answers = ask(tune(base.folder, dialogues, epochs, base.seed), asked)

    # x: the likeness of an instruction to the task's; y: that of its answer to the task's, less that to broad ones.
    broad = base.examples(200)
    broad_instructions, broad_responses = [one.instruction for one in broad], [one.response for one in broad]
    x, = likeness(base, asked, [ours["content"] for ours, _ in dialogues[:200]], centre=broad_instructions)
    own, other = likeness(base, answers, [ours["content"] for _, ours in dialogues[:200]], broad_responses,
                          centre=broad_responses)
    y = own - other

    # How often an answer has the task's style, from the instructions that are likest to the task's down.
    style = torch.tensor([styled(task, answer) for answer in answers]).float()
    fifths = style[x.argsort(descending=True)].tensor_split(5)
    return {"correlation": round(100 * spearman(x.tolist(), y.tolist()), 1),
            "style": [round(100 * fifth.mean().item(), 1) for fifth in fifths],
            "points": [[round(a, 3), round(b, 3)] for a, b in zip(x.tolist(), y.tolist())]}


def run(bases, workers) -> list[dict]:
    like_olmo = partial(another, model_type="olmo", clip_qkv=8.0)
    olmo, = on_each(bases[:1], {"pretraining OLMo's blocks": (1, like_olmo)}, workers).values()
    rows = []
    for blocks, group in (("Llama", bases), ("OLMo", olmo)):
        found = on_each(group, {(blocks, task): (1, remembered, "similarity", looked_at, task, epochs)
                                for task, (_, epochs) in TASKS.items()}, workers)
        for (_, task), of_bases in found.items():
            for base, seen in zip(group, of_bases):
                rows.append({"blocks": blocks, "tuned on": TASKS[task][0], "base": base.seed,
                             "rank correlation": seen["correlation"], **dict(zip(FIFTHS, seen["style"])),
                             "points": seen["points"]})
    return rows


def draw(rows) -> str:
    panels = []
    for task, _ in TASKS.values():
        for blocks, color in (("Llama", BLUE), ("OLMo", ORANGE)):
            shown = [row["points"] for row in rows if (row["tuned on"], row["blocks"]) == (task, blocks)]
            panels.append(Panel(f"Tuned on {task}, {blocks}'s blocks", [("", color, sum(shown, []))],
                                "likeness of instruction", y_range=(-1, 1), joined=False))
    return plot("Likeness of the response to the task's, against likeness of the instruction", panels)
