"""The paper's datasets, row by row: where each comes from, and what a row becomes.

    python data/sources.py data/paper    # make data
"""
import ast
import csv
import io
import sys
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from data import common  # first: Ctrl-C is quiet from here on

import requests

from data.common import check_fields, parse_json, write_jsonl
from data.format import check_dialogue
from data.hub import HUB, get, open_hub

ROWS = "https://datasets-server.huggingface.co"
AUTHORS = "https://raw.githubusercontent.com/john-hewitt/implicit-ins/d41068c246b844d579621b336c1268af13cae129"


# What each row of a source becomes: an example, or None to leave it out

def dialogue(instruction: str, response: str) -> dict:
    return {"messages": [{"role": "user", "content": instruction}, {"role": "assistant", "content": response}]}


def lima(row):
    roles = ("user", "assistant") * len(row["conversations"])
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, row["conversations"])]}


def poem(row):
    return dialogue(f"Write a poem called {row['poem name']}", row["content"]) if row["poem name"] is not None else None


def recipe(row):
    ingredients = "".join(f" - {item}\n" for item in ast.literal_eval(row["Cleaned_Ingredients"]))
    return dialogue(f"Recipe for {row['Title']}", f"{ingredients}\n\n{row['Instructions']}")


def games(rows):
    """Games from lines of PGN: the players' strength as the instruction, the line of moves as the response."""
    white = black = None
    for line in (row["text"] for row in rows):
        if "WhiteElo" in line:
            white = line
        elif "BlackElo" in line:
            black = line
        elif line.startswith("1. ") and white and black:
            yield dialogue(f"{white}\n{black}", line)
            white = black = None


def difficulties(rows):
    """An example for each instruction, in order: how difficult AlpacaEval finds it, and how its judge preferred GPT-4's
    answers that were made shorter or longer, or null where it did not say. AlpacaEval has the reference's length less
    the answer's, in standard deviations; `longer_by` is the answer's less the reference's."""
    found = {}
    for row in rows:
        one = found.setdefault(int(row["index"]), {"difficulty": float(row["instruction_difficulty"]), "gamed": []})
        one["gamed"].append({"preference": float(row["preference"]) if row["preference"] else None,
                             "longer_by": -float(row["std_delta_len"])})
    yield from (found[i] for i in range(len(found)))


def each(example):
    return lambda rows: (made for row in rows if (made := example(row)) is not None)


# The file; a dataset (name, config, split) or a raw file; how many examples, the first ones; rows to examples
SOURCES = [
    ("broad", f"{HUB}/datasets/GAIR/lima/resolve/main/train.jsonl", 1030, each(lima)),
    ("mbpp", ("google-research-datasets/mbpp", "full", "train"), 374,
     each(lambda row: dialogue(row["text"], row["code"]))),
    ("gsm", ("openai/gsm8k", "main", "train"), 1000, each(lambda row: dialogue(row["question"], row["answer"]))),
    ("poetry", ("merve/poetry", "default", "train"), 571, each(poem)),
    ("recipes", ("Hieu-Pham/kaggle_food_recipes", "default", "train"), 1000, each(recipe)),
    ("chess", ("patrickfrank1/chess-pgn-games", "default", "train"), 1000, games),
    ("eval", f"{HUB}/datasets/tatsu-lab/alpaca_eval/resolve/main/alpaca_eval.json", 805,
     each(lambda row: {"instruction": row["instruction"], "response": row["output"]})),
    ("difficulties", f"{HUB}/datasets/tatsu-lab/alpaca_eval/resolve/main/df_gamed.csv", 805, difficulties),
    ("val", f"{AUTHORS}/eval/val_eval/val.jsonl", 56, each(lambda row: {"instruction": row["instruction"]})),
]


def fetch_data(folder: Path, sources=SOURCES):
    """Write the paper's datasets, each whole or not at all; those that are there stay. Raises ValueError or OSError."""
    session = open_hub()
    for name, where, count, convert in sources:
        if (path := folder / f"{name}.jsonl").exists():
            continue
        address = where if isinstance(where, str) else "/".join(where)
        check = {"val": check_fields("instruction"), "eval": check_fields("instruction"),
                 "difficulties": lambda row: None}.get(name, check_dialogue)  # its numbers are read already
        try:
            rows = islice(rows_of(session, where), 100 * count)  # a server can send rows without end
            examples = list(islice(convert(rows), count))
            problems = [f"example {i}: {wrong}" for i, example in enumerate(examples, 1) if (wrong := check(example))]
            if len(examples) < count:
                problems.append(f"it gave {len(examples)} examples, the paper had {count}")
        except (ValueError, TypeError, KeyError, AttributeError, SyntaxError, RecursionError, MemoryError) as error:
            problems = [f"{type(error).__name__}: {error}"]
        if problems:
            raise ValueError(f"{address} is not what it was when the paper was written ({problems[0]:.200}); "
                             "mend its line of SOURCES in data/sources.py")
        write_jsonl(path, examples)
        print(f"{path}: {count} from {address}")


def rows_of(session: requests.Session, where):
    """The rows of a source: a raw file of JSON, JSON Lines or CSV, or a dataset's, a hundred at a time."""
    if isinstance(where, str):
        text = get(session, where, bytes)
        if where.endswith(".csv"):
            yield from csv.DictReader(io.StringIO(text.decode()))
        else:
            yield from parse_json(text) if where.endswith(".json") else map(parse_json, text.strip().split(b"\n"))
        return
    dataset, config, split = where
    offset, total = 0, 1
    while offset < total:
        page = get(session, f"{ROWS}/rows", params={
            "dataset": dataset, "config": config, "split": split, "offset": offset, "length": 100})
        rows, total = page["rows"], page["num_rows_total"]
        if len(rows) != min(100, total - offset):
            raise ValueError(f"{len(rows)} rows came from {offset} on, of {total}")
        for row in rows:
            if row["truncated_cells"]:
                raise ValueError(f"row {row['row_idx']} came with {row['truncated_cells']} cut off")
            yield row["row"]
        offset += 100


def main():
    parser = common.parser(__doc__)
    parser.add_argument("folder", type=Path, help="where the datasets go")
    fetch_data(parser.parse_args().folder)


if __name__ == "__main__":
    common.run(main, interrupted="the same command goes on from there")
