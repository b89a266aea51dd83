"""How does following come about in training? (Open question 14.)

One run of each method, looked at after 1, 2, 4, ... of its steps: the grade of its answers to every second
instruction, and the loss per token on 128 of its own examples.

Expected: response tuning and instruction tuning rise together over the first dozen steps, while the loss falls
fastest: the form comes first. Then response tuning stands still, or falls, since nothing in its loss asks that a
response should fit, and it learns its responses by heart; the table chose the fewest epochs for it. Instruction tuning
goes on rising. Code rises late and less, chess never.
Held against: the epochs that the paper chose on its validation set, 5 for response tuning, 15 for instruction tuning.
"""
import math

from data.format import encode, encode_prompt
from judge import log_likelihoods
from lab.conditions import on_each, remembered
from lab.lab import LR, decode, fit, grade_all, load
from lab.svg import BLUE, GREEN, GREY, RED, Panel, plot
from train import METHODS, n_scored

COLORS = {"instruction": GREY, "response": BLUE, "mbpp": GREEN, "chess": RED}
STEPS, EPOCHS = (1, 2, 4, 8, 16, 32, 64, 160), 10  # of a training set of 1,000; of 500 it takes 20 epochs


def curve(base, method: str, steps, epochs: int) -> list[dict]:
    """A row for the untuned model and for each of some steps: steps, loss per scored token, mean content and grade."""
    (model, tokenizer), tasks, rows, step = load(base.folder), base.tasks("eval")[::2], [], 0
    dialogues = base.dialogues(method)
    examples = [encode(tokenizer, messages, 256, METHODS[method].blank) for messages in dialogues]
    prompts = [encode_prompt(tokenizer, task.instruction) for task in tasks]

    def look(line=None):
        nonlocal step
        if step in (0, *steps):
            totals, _ = log_likelihoods(model, examples[:128])
            answers = [tokenizer.decode(ids).strip() for ids in decode(model, prompts, tokenizer.eos_id)]
            pairs = grade_all(base.world, tasks, answers)
            right, grade = (100 * sum(column) / len(pairs) for column in zip(*pairs))
            loss = -totals.sum().item() / sum(map(n_scored, examples[:128]))
            rows.append({"steps": step, "loss": loss, "right": right, "grade": grade})
        step += 1

    look()
    if not base.limit:
        epochs *= 1000 // len(dialogues)
    fit(model, examples, epochs, LR, base.seed, report=look)
    return rows


def run(bases, workers) -> list[dict]:
    jobs = {method: (1, remembered, "curves", curve, method, STEPS, EPOCHS) for method in COLORS}
    rows = []
    for method, curves in on_each(bases, jobs, workers).items():
        for points in zip(*curves):
            row = {"method": method, "steps": points[0]["steps"]}
            for name in ("loss", "right", "grade"):
                row[name] = [round(point[name], 3) for point in points]
            rows.append(row)
    return rows


def draw(rows) -> str:
    def panel(title, column, highest):
        groups = [(method, color, [(max(row["steps"], 0.5), row[column]) for row in rows if row["method"] == method])
                  for method, color in COLORS.items()]
        marks = {max(row["steps"], 0.5): str(row["steps"]) for row in rows}
        return Panel(title, groups, "steps", y_range=(0, highest), log=True, x_marks=marks)

    highest_loss = math.ceil(max(max(row["loss"]) for row in rows))
    return plot("One run of each method, step by step", [
        panel("Mean grade, %", "grade", 100), panel("Loss per scored token, nats", "loss", highest_loss)])
