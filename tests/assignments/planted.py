"""Reads planted.md: edits of the reference that students make. Another edit is another row there."""
import re
from pathlib import Path
from typing import NamedTuple

import hand_out
import source
from table import ASSIGNMENTS

QUESTIONS = {q.name: (assignment, q) for assignment in ASSIGNMENTS.values() for q in assignment.questions}


class Planted(NamedTuple):
    question: str
    kind: str  # "right" or "wrong"
    name: str
    edits: list[tuple[str, str]]  # (old, new) texts


def read() -> list[Planted]:
    rows = []
    for line in Path(__file__).with_suffix(".md").read_text(encoding="utf-8").splitlines():
        if line.startswith(tuple(f"| {name} |" for name in QUESTIONS)):
            *cells, edits = line.strip("| ").split(" | ")
            rows.append(Planted(*cells, re.findall("`([^`]+)` → `([^`]*)`", edits.replace("⏎", "\n"))))
    return rows


def plant(question: str, *edits) -> dict[str, bytes]:
    """The reference's files with (old, new) texts in a question's functions. ValueError: an old one is not there."""
    assignment, q = QUESTIONS[question]
    files = {file: hand_out.clean_files(assignment)[file] for file in assignment.files}
    text = files[q.file].decode()
    for old, new in edits:
        for name in q.names:
            lines, node = text.splitlines(keepends=True), source.find(text, name)
            body = "".join(lines[node.lineno - 1 : node.end_lineno])
            if old in body:
                lines[node.lineno - 1 : node.end_lineno] = [body.replace(old, new)]
                text = "".join(lines)
                break
        else:
            raise ValueError(f"{question} has no text {old!r}")
    return files | {q.file: text.encode()}
