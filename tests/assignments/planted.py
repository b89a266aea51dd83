"""Reads planted.md: edits of the reference that students make. Another edit is another row there."""
import re
from pathlib import Path
from typing import NamedTuple

import hand_out
import source
from table import ASSIGNMENTS, Assignment, Question

QUESTIONS = {q.name: (assignment, q) for assignment in ASSIGNMENTS.values() for q in assignment.questions}


class Planted(NamedTuple):
    question: str
    is_right: bool
    name: str
    edits: list[tuple[str, str]]  # (old, new) texts

    def files(self) -> dict[str, bytes]:
        """The reference's files with the edits in the question's functions."""
        return plant(self.question, *self.edits)


def read() -> list[Planted]:
    rows = []
    for line in Path(__file__).with_suffix(".md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| ") and not line.startswith("| question "):
            question, kind, name, edits = line.strip("| ").split(" | ")
            pairs = re.findall("`([^`]+)` → `([^`]*)`", edits.replace("⏎", "\n"))
            rows.append(Planted(question, kind == "right", name, pairs))
    return rows


def plant(question: str, *edits) -> dict[str, bytes]:
    """Raises ValueError where a text stands in none of the question's functions."""
    assignment, q = QUESTIONS[question]
    text = hand_out.clean_files(assignment)[q.file].decode()
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
    files = {file: hand_out.clean_files(assignment)[file] for file in assignment.files}
    return files | {q.file: text.encode()}


def only_body(question: str, body: str) -> dict[str, bytes]:
    """The reference's files where a question's function has this body alone."""
    assignment, q = QUESTIONS[question]
    files = {file: hand_out.clean_files(assignment)[file] for file in assignment.files}
    stripped = source.strip(files[q.file].decode(), q.names)
    return files | {q.file: stripped.replace("raise NotImplementedError", body).encode()}
