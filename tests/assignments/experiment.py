"""Assignment 5: response tuning in a world that the base model never read about. First predict, then run.

    make experiment         # or: python tests/check/experiment.py, once prediction.md is filled in
    make check              # is all there?  make submission: pack it

Your name gives your world's seed. Training is 3 epochs on 300 responses without their instructions (section 3).
"""
import hashlib
import re
import sys
import zipfile
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))
from data import common
from data.common import digest, parse_json, write_json

EXAMPLES, EPOCHS, MAX_NEW_TOKENS = 300, 3, 64
NUMBERS = ("loss of the last epoch", "answers that stop, %", "right answers, %")
WORDS = {"Why": 80, "What would show that I am wrong": 30}
TEMPLATE = "# Prediction\n\nStudent:\n\n## Numbers\n\n" + "".join(f"- {name}:\n" for name in NUMBERS) + "".join(
    f"\n## {section}\n\n({words} words or more)\n" for section, words in WORDS.items())
LOSS_TOLERANCE, SHARE_TOLERANCE = 0.03, 10  # bf16 or fp32, and what follows from it: a share; points of a percentage


def seed_of(student: str) -> int:
    """The seed of a student's world, which nobody chooses."""
    return 1000 + int(hashlib.sha256(" ".join(student.lower().split()).encode()).hexdigest(), 16) % 10**6


def student_of(prediction: str) -> str:
    found = re.search(r"^Student:[ \t]*(\S.*)$", prediction, re.M)
    if not found:
        raise ValueError("prediction.md has no name after Student:")
    return found[1].strip()


def missing(prediction: str) -> list[str | None]:
    """What a prediction lacks, or None, for each of its parts."""
    numbers = [re.search(rf"^- {re.escape(name)}:[ \t]*(\d+\.?\d*)", prediction, re.M) for name in NUMBERS]
    said = ["not every number is predicted" if None in numbers else None]
    for section, words in WORDS.items():
        text = re.search(rf"^## {section}$(.*?)(?=^## |\Z)", prediction, re.M | re.S)
        n = len(re.findall(r"\w+", re.sub(r"\(\d+ words or more\)", "", text[1]))) if text else 0
        said.append(f"'{section}' has {n} words, expected {words} or more" if n < words else None)
    return said


@cache
def run(seed: int) -> dict:
    """The experiment: {"data_sha256", "loss", "before", "after"}, about 20 seconds on two cores."""
    from data import answer_key  # here, since torch takes seconds to import
    from data.format import PROMPT, Tokenizer, encode, encode_prompt
    from data.world import World
    from generate import generate
    from model import Llama
    from train import train

    world, path = World(seed=seed), ROOT / "data" / "tiny"
    model, tokenizer = Llama.from_pretrained(path), Tokenizer(path)
    rows, tasks = world.training_set("broad", EXAMPLES), world.evaluation_sets()["val"]
    examples = [encode(tokenizer, row["messages"], model.config.context, blank=True) for row in rows]

    def measured():
        prompts = [encode_prompt(tokenizer, task.instruction) for task in tasks]
        answers = generate(model, prompts, tokenizer.eos_id, MAX_NEW_TOKENS)
        right = [answer_key.grade(world, task, tokenizer.decode(ids))[0] == 1 for task, ids in zip(tasks, answers)]
        families = sorted({task.family for task, good in zip(tasks, right) if good})
        stopped = sum(len(ids) < MAX_NEW_TOKENS for ids in answers)
        return {"stop": 100 * stopped / len(tasks), "right": 100 * sum(right) / len(tasks), "right in": families}

    before = measured()
    loss = train(model, examples, epochs=EPOCHS, lr=3e-4, batch_size=16, report=lambda line: None)
    return {"data_sha256": digest([rows, PROMPT]), "loss": loss, "before": before, "after": measured()}


def check_prediction(files: dict[str, bytes]) -> list[str | None]:
    """What is wrong with a submitted prediction, or None, for each of its parts and for its time."""
    data = files.get("prediction.md")
    if data is None:
        return ["prediction.md is not there"] * 4
    said = missing(data.decode(errors="replace").replace("\r\n", "\n"))
    recorded = read_result(files).get("prediction_sha256")
    late = "prediction.md is not the one that the run began with" if recorded != hash_of(data) else None
    return [*said, late]


def check_run(files: dict[str, bytes]) -> list[str | None]:
    """What is wrong with a submitted result.json, or None, part by part: it is compared with a run done again."""
    result = read_result(files)
    try:
        seed = seed_of(student_of(files.get("prediction.md", b"").decode(errors="replace")))
    except ValueError as error:
        return [str(error)] * 4
    if result.get("seed") != seed:
        return [f"result.json is of seed {result.get('seed')!r:.20}, and the name in prediction.md gives {seed}"] * 4
    again = run(seed)
    wrong = [None if result.get("data_sha256") == again["data_sha256"] else "it was trained on other data"]
    wrong.append(far("loss", result.get("loss"), again["loss"], LOSS_TOLERANCE * again["loss"]))
    for when in ("before", "after"):
        shares = result[when] if isinstance(result.get(when), dict) else {}
        wrong.append(next(filter(None, (far(f"{when}: {name}", shares.get(name), again[when][name], SHARE_TOLERANCE)
                                        for name in ("stop", "right"))), None))
    return wrong


def far(name, found, expected, tolerance) -> str | None:
    if type(found) in (int, float) and abs(found - expected) <= tolerance:
        return None
    return f"{name} is {found!r:.20}; done again it was {expected:.3f}"


def read_result(files: dict[str, bytes]) -> dict:
    try:
        result = parse_json(files.get("result.json", b""))
    except ValueError:
        return {}
    return result if isinstance(result, dict) else {}


def hash_of(data: bytes) -> str:
    return hashlib.sha256(data.replace(b"\r\n", b"\n")).hexdigest()[:16]


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--check", action="store_true", help="is everything there? nothing is run")
    parser.add_argument("--submission", action="store_true", help="pack prediction.md and result.json")
    args = parser.parse_args()
    files = {name: (ROOT / name).read_bytes() for name in ("prediction.md", "result.json") if (ROOT / name).exists()}
    if args.check or args.submission:
        wrong = [said for said in dict.fromkeys(check_prediction(files)) if said]
        if wrong or not read_result(files):
            raise ValueError("; ".join(wrong or ["result.json is not there; make experiment writes it"]))
        if args.submission:
            with zipfile.ZipFile(ROOT / "assignment-5.zip", "w") as archive:
                for name, data in files.items():
                    archive.writestr(name, data)
        return print("wrote assignment-5.zip: hand in this file" if args.submission else "all is there")
    prediction = files.get("prediction.md", b"").decode().replace("\r\n", "\n")
    student, wrong = student_of(prediction), [said for said in missing(prediction) if said]
    if wrong:
        raise ValueError(f"first the prediction: {'; '.join(wrong)}")
    seed = seed_of(student)
    print(f"{student}: the world of seed {seed}", flush=True)
    result = {"student": student, "seed": seed, "prediction_sha256": hash_of(files["prediction.md"])} | run(seed)
    write_json(ROOT / "result.json", result)
    print(f"wrote result.json: loss {result['loss']:.3f}, before {result['before']}, after {result['after']}")


if __name__ == "__main__":
    common.run(main)
