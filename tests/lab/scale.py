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
from lab.conditions import WAYS, another, graded, summary, ways
from lab.lab import LR, PRETRAINING_LR, load, side_by_side
from lab.svg import BLACK, BLUE, GREY, ORANGE, PINK, Panel, plot

SHAPES = (  # width, width of the MLP, layers, heads, key/value heads, width of a head
    (64, 176, 2, 2, 1, 32), (128, 352, 3, 2, 1, 64), (256, 704, 4, 4, 2, 64), (384, 1056, 5, 6, 2, 64))
NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "head_dim")
COLORS = dict(zip(WAYS, (BLACK, ORANGE, PINK, BLUE, GREY)))


def run(bases, workers) -> list[dict]:
    shapes = {shape: dict(zip(NAMES, shape)) for shape in SHAPES}
    made = side_by_side({("pretraining", shape, base.seed): (shape[0] * shape[2], size, base, changes)
                         for shape, changes in shapes.items() for base in bases}, workers)
    rows = []
    for shape in SHAPES:
        of_size = [made["pretraining", shape, base.seed] for base in bases]
        found = graded(of_size, ways(LR * 256 / shape[0]), workers)
        parameters = sum(weight.numel() for weight in load(of_size[0].folder)[0].parameters())
        best = summary(found["instruction tuning"])["grade"]
        for way, grades in found.items():
            row = summary(grades, found["instruction tuning"])
            shares = [round(100 * a / b, 1) if b else 0.0 for a, b in zip(row["grade"], best)]
            rows.append({"parameters": parameters, "way": way, **row, "share of instruction tuning": shares})
    return rows


def size(base, changes: dict):
    """The base itself, where it has this shape already."""
    config = load(base.folder)[0].config
    if all(getattr(config, name) == value for name, value in changes.items()):
        return base
    return another(base, lr=PRETRAINING_LR / 2 if changes["hidden_size"] > 256 else PRETRAINING_LR, **changes)


def draw(rows) -> str:
    def panel(title, column, left_out):
        marks = {row["parameters"]: f"{row['parameters'] / 1e6:.1f}M" for row in rows}
        return Panel(title, [(way, color, [(row["parameters"], row[column]) for row in rows if row["way"] == way])
                             for way, color in COLORS.items() if way not in left_out], "parameters", log=True,
                     x_marks=marks)

    return plot("Following instructions against model size", [
        panel("Mean grade, %", "grade", ()),
        panel("Share of instruction tuning's grade, %", "share of instruction tuning", ("instruction tuning",))])
