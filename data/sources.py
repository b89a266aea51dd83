"""The paper's datasets, row by row: where each comes from, and what a row becomes.

    python data/sources.py data/paper    # make data
"""
import ast
import csv
import sys
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from data import common  # first: Ctrl-C is quiet from here on

import requests

from data.common import check_fields, parse_json, read_jsonl, write_jsonl
from data.format import check_dialogue, dialogue
from data.hub import HUB, get, get_json, open_hub

ROWS = "https://datasets-server.huggingface.co"
AUTHORS = "https://raw.githubusercontent.com/john-hewitt/implicit-ins/d41068c246b844d579621b336c1268af13cae129"


def example(*texts: str) -> dict:
    return {"messages": dialogue(*texts)}


def poem(row):
    if row["poem name"] is not None:
        return example(f"Write a poem called {row['poem name']}", row["content"])


def recipe(row):
    ingredients = "".join(f" - {item}\n" for item in ast.literal_eval(row["Cleaned_Ingredients"]))
    return example(f"Recipe for {row['Title']}", f"{ingredients}\n\n{row['Instructions']}")


def games(rows):
    """Games from lines of PGN: the players' strength as the instruction, the line of moves as the response."""
    white = black = None
    for row in rows:
        line = row["text"]
        if "WhiteElo" in line:
            white = line
        elif "BlackElo" in line:
            black = line
        elif line.startswith("1. ") and white and black:
            yield example(f"{white}\n{black}", line)
            white = black = None


def difficulties(rows):
    """For each instruction, in order, how difficult AlpacaEval finds it, and how its judge preferred GPT-4's answers
    that were made shorter or longer (null: it did not say). AlpacaEval has the reference's length less the answer's,
    in standard deviations; `longer_by` is the answer's less the reference's."""
    examples = {}
    for row in rows:
        new = {"difficulty": float(row["instruction_difficulty"]), "gamed": []}
        preference = float(row["preference"]) if row["preference"] else None
        gamed = examples.setdefault(int(row["index"]), new)["gamed"]
        gamed.append({"preference": preference, "longer_by": -float(row["std_delta_len"])})
    return [examples[index] for index in range(len(examples))]


# The file; a dataset (name, config, split) or a raw file; how many examples, the first ones; what converts
SOURCES = [
    ("broad", f"{HUB}/datasets/GAIR/lima/resolve/main/train.jsonl", 1030, lambda row: example(*row["conversations"])),
    ("mbpp", ("google-research-datasets/mbpp", "full", "train"), 374, lambda row: example(row["text"], row["code"])),
    ("gsm", ("openai/gsm8k", "main", "train"), 1000, lambda row: example(row["question"], row["answer"])),
    ("poetry", ("merve/poetry", "default", "train"), 571, poem),
    ("recipes", ("Hieu-Pham/kaggle_food_recipes", "default", "train"), 1000, recipe),
    ("chess", ("patrickfrank1/chess-pgn-games", "default", "train"), 1000, games),
    ("eval", f"{HUB}/datasets/tatsu-lab/alpaca_eval/resolve/main/alpaca_eval.json", 805,
     lambda row: {"instruction": row["instruction"], "response": row["output"]}),
    ("difficulties", f"{HUB}/datasets/tatsu-lab/alpaca_eval/resolve/main/df_gamed.csv", 805, difficulties),
    ("val", f"{AUTHORS}/eval/val_eval/val.jsonl", 56, lambda row: {"instruction": row["instruction"]}),
]


def fetch_data(folder: Path, sources=SOURCES):
    """Write the paper's datasets, each whole or not at all; those that are there stay. Raises ValueError or OSError."""
    session = open_hub()
    for name, source, count, convert in sources:
        path, address = folder / f"{name}.jsonl", source if isinstance(source, str) else "/".join(source)
        if path.exists():
            continue
        try:
            rows = rows_of(session, source)
            converted = convert(rows) if convert in (games, difficulties) else filter(None, map(convert, rows))
            examples = list(islice(converted, count))
            for i, row in enumerate(examples, 1):
                if "messages" in row and (problem := check_dialogue(row)):
                    raise ValueError(f"example {i}: {problem}")
            if len(examples) < count:
                raise ValueError(f"it gave {len(examples)} examples, the paper had {count}")
        except (ValueError, TypeError, LookupError, AttributeError, SyntaxError) as error:
            raise ValueError(f"{address} is not as the paper had it ({type(error).__name__}: {error})") from None
        write_jsonl(path, examples)
        print(f"{path}: {count} from {address}")


def rows_of(session: requests.Session, source):
    """The rows of a source: a raw file of JSON, JSON Lines or CSV, or a dataset's, a hundred at a time."""
    if isinstance(source, str):
        text = get(session, source).content.decode()
        if source.endswith(".csv"):
            yield from csv.DictReader(text.splitlines())
        elif source.endswith(".json"):
            yield from parse_json(text)
        else:
            yield from map(parse_json, text.strip().split("\n"))
        return
    query = dict(zip(("dataset", "config", "split"), source))
    for offset in range(0, 10**9, 100):
        page = get_json(session, f"{ROWS}/rows", params=query | {"offset": offset, "length": 100})
        for row in page["rows"]:
            if row["truncated_cells"]:
                raise ValueError(f"row {row['row_idx']} came with {row['truncated_cells']} cut off")
            yield row["row"]
        if offset + 100 >= page["num_rows_total"]:
            return


def difficulties_of(instructions, folder: Path):
    """(difficulties, gamed) of instructions as `length_controlled` of judge.py takes them; None if `folder` has no
    difficulties.jsonl, whose lines go with those of eval.jsonl, or not all of the instructions. Raises ValueError."""
    if not (folder / "difficulties.jsonl").exists():
        return None
    asked = read_jsonl(folder / "eval.jsonl", check_fields("instruction"))
    rows, gamed = read_jsonl(folder / "difficulties.jsonl", lambda row: None), []
    try:
        known = {question["instruction"]: row["difficulty"] for question, row in zip(asked, rows)}
        for answers in zip(*(row["gamed"] for row in rows), strict=True):  # model by model, as AlpacaEval has them
            for row, answer in zip(rows, answers):
                if answer["preference"] is not None:
                    gamed.append((answer["preference"], answer["longer_by"], row["difficulty"]))
    except (ValueError, TypeError, LookupError):
        raise ValueError(f"{folder / 'difficulties.jsonl'} is not what make data writes; remove it, and make data "
                         "writes it anew") from None
    return ([known[one] for one in instructions], gamed) if known.keys() >= set(instructions) else None


def main():
    parser = common.parser(__doc__)
    parser.add_argument("folder", type=Path, help="where the datasets go")
    fetch_data(parser.parse_args().folder)


if __name__ == "__main__":
    common.run(main, interrupted="the same command goes on from there")
