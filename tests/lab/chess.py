"""Why does chess fail? (Open question 12.)

Fifteen tasks between games of chess and poems: chess asked or answered in words, short, or with one opening; poems with
one opening, of one line, backwards, or about something else than asked; sums, digits, recipes, code. 300 examples of
each, 5 epochs. Of each task, before it is trained: the base's loss on the responses (are they natural?)
and on their first token, the entropy of the first token, their length, their likeness to broad responses, and what the
loss gains by the right instruction (does the response depend on what is asked?). Rank correlation of each with the
grade on `eval`, over tasks, and a regression of the grade on all of them.

Expected: naturalness decides: what the base finds unlikely pulls its weights far from sentences, so chess in words
teaches, and poems backwards do not. Length matters less (short chess still fails). One opening hurts poems, since the
habit of beginning with it spreads, and does nothing to chess. A poem about something else teaches not to read, as in
`pairing`. The gain by the right instruction is the second-best predictor.
Held against: chess wins 2.1 (Llama-2-7B) and 6.3 (OLMo-7B), the other tasks 10 to 30.
"""
import statistics

import torch

from data.world import chess_game
from lab.conditions import spearman
from lab.narrow import FEATURES, backwards, charts, least_squares, of_family, otherwise, tried, unchanged
from lab.svg import BLUE, ORANGE

PIECES = {"N": "the knight goes", "B": "the bishop goes", "R": "the rook goes", "Q": "the queen goes", "O": "the king"}
SHOW = "Show me a game of chess."


def game(base, rng):
    return chess_game(rng).split("\n\n")  # the players' strength, the moves


def in_words(moves: str, rng) -> str:
    words = []
    for move in moves.split()[:-1]:
        if move[-1] != ".":
            words.append(PIECES.get(move[0], "a pawn goes") + (" castles" if move[0] == "O" else f" to {move[-2:]}"))
    return "First " + ", then ".join(words) + "."


poem = of_family("poem")
TASKS = {
    "chess": game,
    "chess, one opening": otherwise(game, lambda text, rng: "1. e4 e5 " + text.split(" ", 3)[3]),
    "chess, three moves": otherwise(game, lambda text, rng: " ".join(text.split()[:5])),
    "chess, asked in words": otherwise(game, unchanged, SHOW),
    "chess, answered in words": otherwise(game, in_words), "chess, both in words": otherwise(game, in_words, SHOW),
    "poems": poem, "poems, one opening": otherwise(poem, lambda text, rng: "This is a poem.\n" + text),
    "poems, one line": otherwise(poem, lambda text, rng: text.split("\n")[0]),
    "poems, backwards": otherwise(poem, backwards),
    "poems of another topic": lambda base, rng: (poem(base, rng)[0], poem(base, rng)[1]),
    "recipes": of_family("recipe"), "sums": of_family("maths"), "code": of_family("code"),
    "digits": otherwise(poem, lambda text, rng: " ".join(rng.choices("0123456789", k=20)), "Write digits."),
}


def run(bases, workers) -> list[dict]:
    rows = [{"task": name, **row} for name, row in tried(bases, TASKS, 300, 5, workers).items()]

    # How each number goes with the grade: alone on each base, and together with the others over their means.
    correlations = {}
    for feature in FEATURES:
        of_bases = zip(zip(*(row[feature] for row in rows)), zip(*(row["grade"] for row in rows)))
        correlations[feature] = [round(spearman(numbers, grades), 2) for numbers, grades in of_bases]
    columns = []
    for name in ("grade", *FEATURES):
        column = torch.tensor([statistics.mean(row[name]) for row in rows])
        columns.append((column - column.mean()) / (column.std() + 1e-9))
    z = torch.stack(columns, 1)  # (tasks, 1 + features)
    slopes = [round(slope, 2) for slope in least_squares(z[:, 1:], z[:, 0]).tolist()]
    blank = {"right": "", "grade": ""}
    return rows + [{"task": "rank correlation with the grade", **blank, **correlations},
                   {"task": "slopes of a regression of the grade", **blank, **dict(zip(FEATURES, slopes))}]


def draw(rows) -> str:
    tasks = rows[:-2]
    chess = [row for row in tasks if row["task"].startswith("chess")]
    return charts([("chess", ORANGE, chess), ("other tasks", BLUE, [row for row in tasks if row not in chess])])
