"""Is it greedy decoding alone that hides the answers? (Section 4.2's explanation of why so little is enough.)

Base, response-tuned and instruction-tuned model, each decoded greedily, by beam search (5 beginnings), by sampling, and
by the likeliest of 8 samples, in total or per token. No answer is longer than 60 tokens here.

Expected: the base's answers stay hidden under every way that looks for likely texts. Beam search finds short questions
back, the likeliest sample too. Sampling answers about as often as the family's dose, some 8 %, and one of 8 samples is
right in half of the cases: the answers are there, as a small part of the distribution. Per token, long likely answers
gain. For the tuned models greedy decoding and beam search are alike, and sampling is worse.
Held against: the paper decodes greedily alone; its base ranks the right response above another one's in 80.4 %.
"""
import torch

from data.common import read_json, write_json
from data.format import dialogue, encode_prompt
from generate import generate
from judge import log_likelihoods
from lab.beam import beam_search
from lab.conditions import summary
from lab.lab import identity, kept, load, side_by_side, tune
from lab.svg import BLACK, BLUE, GREY, bars

LONGEST, SAMPLES = 60, 8
MODELS = {"base": (BLACK, None), "response tuning": (BLUE, 2), "instruction tuning": (GREY, 5)}  # colour, epochs
WAYS = ["greedy", "beam search", "one sample", "likeliest sample", "likeliest sample, per token", "best of 8 samples"]


def decoded(base, epochs: int | None) -> dict:
    """{way: a (content, grade) for each instruction}, and how often the right response is likelier than the greedy."""
    def make(folder):
        pairs = [dialogue(task.instruction, task.response) for task in base.examples()]
        tuned = tune(base.folder, pairs, epochs, base.seed, blank=epochs == 2) if epochs else base.folder
        (model, tokenizer), tasks = load(tuned), base.tasks("eval")
        prompts, eos = [encode_prompt(tokenizer, task.instruction) for task in tasks], tokenizer.eos_id

        def decode(prompts, **options):
            return [ids for i in range(0, len(prompts), 64)
                    for ids in generate(model, prompts[i : i + 64], eos, max_new_tokens=LONGEST, **options)]

        def likelihoods(prompts, answers):
            ended = [ids + [eos] * (len(ids) < LONGEST) for ids in answers]
            return log_likelihoods(model, [(p + a, [-100] * len(p) + a) for p, a in zip(prompts, ended)])

        def graded(answers):
            return [base.world.grade(task, tokenizer.decode(ids).strip()) for task, ids in zip(tasks, answers)]

        many = [prompt for prompt in prompts for _ in range(SAMPLES)]
        samples = decode(many, temperature=1.0, generator=torch.Generator().manual_seed(base.seed))
        total, mean = (scores.view(-1, SAMPLES) for scores in likelihoods(many, samples))  # (N, SAMPLES)
        rows = [samples[i : i + SAMPLES] for i in range(0, len(samples), SAMPLES)]
        greedy = decode(prompts)
        found = {"greedy": graded(greedy), "one sample": graded([row[0] for row in rows]),
                 "beam search": graded([beam_search(model, prompt, eos, LONGEST) for prompt in prompts])}
        for way, scores in (("likeliest sample", total), ("likeliest sample, per token", mean)):
            found[way] = graded([row[i] for row, i in zip(rows, scores.argmax(1).tolist())])
        every = [graded([row[i] for row in rows]) for i in range(SAMPLES)]
        found["best of 8 samples"] = [max(some) for some in zip(*every)]  # as the answer key sees it
        right = [tokenizer.encode(task.response).ids for task in tasks]
        likelier = likelihoods(prompts, right)[0] > likelihoods(prompts, greedy)[0]
        write_json(folder / "decoded.json", found | {"likelier": 100 * likelier.float().mean().item()})

    made = kept("decoded", [identity(base.folder), base.seed, base.most, epochs], make)
    return read_json(made / "decoded.json", "remove its folder")


def run(bases, workers) -> list[dict]:
    jobs = {(name, base.seed): (1, decoded, base, epochs) for name, (_, epochs) in MODELS.items() for base in bases}
    found, rows = side_by_side(jobs, workers), []
    for name in MODELS:
        for way in WAYS:
            of_bases = [found[name, base.seed] for base in bases]
            rows.append({"model": name, "decoding": way, **summary([one[way] for one in of_bases],
                                                                   [one["greedy"] for one in of_bases]),
                         "right one likelier than greedy": [round(one["likelier"], 2) for one in of_bases]})
    return rows


def draw(rows) -> str:
    right = {(row["model"], row["decoding"]): row["right"] for row in rows}
    series = [(name, color) for name, (color, _) in MODELS.items()]
    return bars("Right answers under different ways of decoding, %", series,
                [(way, [right[name, way] for name in MODELS]) for way in WAYS])
