"""Does it grow with scale? (Open question 7.)

Base models of 0.2M to 8.6M parameters, pretrained on the same documents; then every way of following on each. The
rate of tuning falls with the width, as the bundled model's falls to a 7B model's. So does the largest one's rate of
pretraining: at the others' 3e-3 it ended with a greater loss than a model of a tenth of its size.

Expected: everything grows, because the base knows more: the smallest cannot copy a name and gets under 10 % even when
instruction-tuned. The share of instruction tuning that response tuning reaches grows, too, from about a half to nine
tenths: a base that knows more has less to learn. The rules' share grows slowest, since a better model of pages is more
sure of its silences, too. Between the two largest little changes: the documents' facts are learned by then.
Held against: "it should grow with scale" is a guess so far; the paper has 7B models alone.
"""
from lab.conditions import WAYS, another, graded, on_each, summary, ways
from lab.lab import LR, PRETRAINING_LR, load
from lab.svg import BLACK, BLUE, GREY, ORANGE, PINK, Panel, plot, points

SHAPES = (  # width, width of the MLP, layers, heads, key/value heads, width of a head
    (64, 176, 2, 2, 1, 32), (128, 352, 3, 2, 1, 64), (256, 704, 4, 4, 2, 64), (384, 1056, 5, 6, 2, 64))
NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "head_dim")
COLORS = dict(zip(WAYS, (BLACK, ORANGE, PINK, BLUE, GREY)))


def of_shape(base, changes: dict):
    """A base of this shape: the base itself, where it has it already."""
    config = load(base.folder)[0].config
    if all(getattr(config, name) == value for name, value in changes.items()):
        return base
    return another(base, lr=PRETRAINING_LR / 2 if changes["hidden_size"] > 256 else PRETRAINING_LR, **changes)


def run(bases, workers) -> list[dict]:
    made = on_each(bases, {("pretraining", shape): (shape[0] * shape[2], of_shape, dict(zip(NAMES, shape)))
                           for shape in SHAPES}, workers)
    rows = []
    for (_, (width, *_)), others in made.items():
        found = graded(others, ways(LR * 256 / width), workers)
        parameters = sum(weight.numel() for weight in load(others[0].folder)[0].parameters())
        best = summary(found["instruction tuning"])["grade"]
        for way, grades in found.items():
            row = summary(grades, found["instruction tuning"])
            shares = [round(100 * a / b, 1) if b else 0.0 for a, b in zip(row["grade"], best)]
            rows.append({"parameters": parameters, "way": way, **row, "share of instruction tuning": shares})
    return rows


def draw(rows) -> str:
    marks = {row["parameters"]: f"{row['parameters'] / 1e6:.1f}M" for row in rows}

    def panel(title, column, shown):
        curves = [(way, COLORS[way], points(rows, "parameters", column, way=way)) for way in shown]
        return Panel(title, curves, "parameters", log=True, x_marks=marks)

    others = [way for way in COLORS if way != "instruction tuning"]
    return plot("Following instructions against model size", [
        panel("Mean grade, %", "grade", COLORS),
        panel("Share of instruction tuning's grade, %", "share of instruction tuning", others)])
