"""Assignment 5: response tuning in a world that the base model never read about. First predict, then run.

    make experiment         # or: python tests/check/check.py, once prediction.md is filled in
    make check              # is all there?

The text of your prediction gives your world's seed: after the run it can no longer be changed. Training is 3 epochs on
300 responses without their instructions (section 3).
"""
import hashlib
import re
import sys
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


def prediction_of(files: dict[str, bytes]) -> str:
    return files.get("prediction.md", b"").decode(errors="replace").replace("\r\n", "\n")


def seed_of(prediction: str) -> int:
    """The seed of the world in which a prediction is tested, which nobody chooses."""
    return 1000 + int(hashlib.sha256(prediction.strip().encode()).hexdigest(), 16) % 10**6


def check_prediction(files: dict[str, bytes]) -> list[str | None]:
    """What is wrong with a prediction, or None, for each of its parts."""
    prediction = prediction_of(files)
    said = [None if re.search(r"^Student:[ \t]*\S", prediction, re.M) else "prediction.md has no name after Student:"]
    numbers = [re.search(rf"^- {re.escape(name)}:[ \t]*\d", prediction, re.M) for name in NUMBERS]
    said.append("not every number is predicted" if None in numbers else None)
    for section, words in WORDS.items():
        text = prediction.partition(f"## {section}\n")[2].partition("\n## ")[0]
        n = len(re.findall(r"\w+", re.sub(r"\(\d+ words or more\)", "", text)))
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
    from train import Hyperparameters, train

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
    hyper = Hyperparameters(EPOCHS, lr=3e-4, batch_size=16)
    losses = train(model, examples, hyper, report=lambda line: None)
    last_epoch = losses[-len(losses) // EPOCHS:]
    return {"data_sha256": digest([rows, PROMPT]), "loss": sum(last_epoch) / len(last_epoch), "before": before,
            "after": measured()}


def check_run(files: dict[str, bytes]) -> list[str | None]:
    """What is wrong with a submitted result.json, or None, part by part: it is compared with a run done again."""
    result, seed = read_result(files), seed_of(prediction_of(files))
    if result.get("seed") != seed:
        return [f"result.json is of the world {result.get('seed')!r:.20}, and the text of prediction.md gives {seed}; "
                "so it is not the prediction that the run began with"] * 4
    again = run(seed)
    wrong = [None if result.get("data_sha256") == again["data_sha256"] else "it was trained on other data"]
    wrong.append(far("loss", result.get("loss"), again["loss"], LOSS_TOLERANCE * again["loss"]))
    for when in ("before", "after"):
        shares = result[when] if isinstance(result.get(when), dict) else {}
        said = [far(f"{when}: {name}", shares.get(name), again[when][name], SHARE_TOLERANCE)
                for name in ("stop", "right")]
        wrong.append(said[0] or said[1])
    return wrong


def far(name, found, expected, tolerance) -> str | None:
    if type(found) in (int, float) and expected - tolerance <= found <= expected + tolerance:
        return None
    return f"{name} is {found!r:.20}; done again it was {expected:.3f}"


def read_result(files: dict[str, bytes]) -> dict:
    try:
        result = parse_json(files.get("result.json", b""))
    except ValueError:
        result = None
    return result if isinstance(result, dict) else {}


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--check", action="store_true", help="is everything there? nothing is run")
    args = parser.parse_args()
    files = {name: (ROOT / name).read_bytes() for name in ("prediction.md", "result.json") if (ROOT / name).exists()}
    seed, wrong = seed_of(prediction_of(files)), [said for said in check_prediction(files) if said]
    if args.check and not wrong and read_result(files).get("seed") != seed:
        wrong = ["result.json is not there, or is not of this prediction; make experiment writes it"]
    if wrong:
        raise ValueError("; ".join(wrong))
    if args.check:
        return print("all is there")
    print(f"the world of seed {seed}", flush=True)
    result = {"seed": seed} | run(seed)
    write_json(ROOT / "result.json", result)
    print(f"wrote result.json: loss {result['loss']:.3f}, before {result['before']}, after {result['after']}")


if __name__ == "__main__":
    common.run(main)
