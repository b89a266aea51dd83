"""Files of answers in AlpacaEval's format. A kill loses no finished batch, and the settings that made a file stand
beside it.

    [{"instruction": ..., "output": ..., "generator": ...}, ...]     # answers.json
    {"model_sha256": ..., "instructions_sha256": ..., ...}           # answers.settings.json
"""
import sys
import time
from pathlib import Path

from data import runs
from data.files import Journal, clock, digest, read_json, write_json


def write_answers(path: Path, instructions: list[str], settings: dict, decode):
    """Answer `instructions` batch by batch and write them to `path`. Several ranks share the batches.

    settings: all that determines the answers, with at least `generator` and `batch_size`; they are written beside
    `path`. decode(instructions, start) returns the answers to a batch that begins at row `start`. Finished batches
    are kept in a journal until all are, so the same command goes on where it was stopped.
    """
    size, began = settings["batch_size"], time.perf_counter()
    keys = [digest([settings, i, instruction]) for i, instruction in enumerate(instructions)]
    partial = path.with_name(f"{path.name}.partial{runs.rank() or ''}")
    with Journal(partial) as journal:
        starts = range(0, len(keys), size)[runs.rank() :: runs.n_ranks()]
        left = [start for start in starts if not journal.values.keys() >= set(keys[start : start + size])]
        if len(left) < len(starts):
            print(f"{path}: continuing after {len(starts) - len(left)} of {len(starts)} batches", file=sys.stderr)
        for done, start in enumerate(left, 1):
            for key, output in zip(keys[start:], decode(instructions[start : start + size], start)):
                journal.add(key, output)
            rate = done / (time.perf_counter() - began)
            print(f"{path}: {done}/{len(left)} batches  {rate * size:.1f} answers/s  "
                  f"{clock((len(left) - done) / rate)} left", file=sys.stderr)
        outputs = {key: output for values in runs.from_all(journal.values) for key, output in values.items()}
        if runs.is_main():
            settings_file(path).unlink(missing_ok=True)  # until the new answers are whole, nothing vouches for them
            write_json(path, [{"instruction": instruction, "output": outputs[key], "generator": settings["generator"]}
                              for instruction, key in zip(instructions, keys)])
            write_json(settings_file(path), settings)
        runs.wait_for_all()
        partial.unlink()


def settings_file(path: Path) -> Path:
    return path.with_suffix(".settings.json")


def is_finished(path: Path, settings: dict) -> bool:
    """Whether `path` holds the answers that these settings give."""
    try:
        return path.exists() and read_json(settings_file(path), "") == settings
    except (OSError, ValueError):
        return False


def read_outputs(path: Path) -> list[dict]:
    """The rows of a file in AlpacaEval's output format. Raises FileNotFoundError, or ValueError naming the row."""
    rows = read_json(path, f"generate.py --input ... --output {path} writes it")
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: expected a list of answers, at least one")
    for i, row in enumerate(rows, 1):
        try:
            (row["instruction"] + row["output"]).encode()  # fails for other types, and for half a surrogate pair
        except (KeyError, TypeError, AttributeError, UnicodeError):
            raise ValueError(f'{path}: answer {i} is not {{"instruction": "...", "output": "..."}}') from None
    return rows


def pair(outputs: Path, reference: Path) -> list[tuple[str, str, str]]:
    """(instruction, output, reference output) for two files that answer the same instructions, in the first's order.

    An instruction that stands in a file several times is paired in the order of its answers. Raises ValueError, naming
    an instruction that one file answers more often than the other.
    """
    left, pairs = {}, []
    for row in read_outputs(reference):
        left.setdefault(row["instruction"], []).append(row["output"])
    for row in read_outputs(outputs):
        if not left.get(row["instruction"]):
            raise ValueError(f"{reference} has fewer answers to {row['instruction'][:200]!r} than {outputs}; "
                             "give both files the same instructions")
        pairs.append((row["instruction"], row["output"], left[row["instruction"]].pop(0)))
    if extra := [instruction for instruction, answers in left.items() if answers]:
        raise ValueError(f"{outputs} has fewer answers to {extra[0][:200]!r} than {reference}; "
                         "give both files the same instructions")
    return pairs
