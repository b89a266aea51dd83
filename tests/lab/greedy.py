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

from data.format import IGNORE, encode_prompt
from judge import log_likelihoods
from lab.beam import beam_search
from lab.conditions import on_each, remembered, summary
from lab.lab import decode, grade_all, load, tune
from lab.svg import BLACK, BLUE, GREY, bars, grouped

LONGEST, SAMPLES = 60, 8
MODELS = {"base": (BLACK, None), "response tuning": (BLUE, 2), "instruction tuning": (GREY, 5)}  # colour, epochs
WAYS = ["greedy", "beam search", "one sample", "likeliest sample", "likeliest sample, per token", "best of 8 samples"]


def decoded(base, epochs: int | None) -> dict:
    """{way: a (content, grade) for each instruction}, and how often the right response is likelier than the greedy."""
    tuned = tune(base.folder, base.pairs(), epochs, base.seed, blank=epochs == 2) if epochs else base.folder
    (model, tokenizer), tasks = load(tuned), base.tasks("eval")
    prompts, eos = [encode_prompt(tokenizer, task.instruction) for task in tasks], tokenizer.eos_id

    def graded(answers):
        return grade_all(base.world, tasks, [tokenizer.decode(ids).strip() for ids in answers])

    # Greedy decoding and beam search.
    greedy = decode(model, prompts, eos, LONGEST)
    found = {"greedy": graded(greedy),
             "beam search": graded([beam_search(model, prompt, eos, LONGEST) for prompt in prompts])}

    # Samples, of which the likeliest, or as the answer key sees it the best, is taken.
    many = [prompt for prompt in prompts for _ in range(SAMPLES)]
    samples = decode(model, many, eos, LONGEST, temperature=1.0, generator=torch.Generator().manual_seed(base.seed))
    total, mean = (scores.view(-1, SAMPLES) for scores in likelihoods(model, many, samples, eos))  # (N, SAMPLES)
    rows = [samples[i : i + SAMPLES] for i in range(0, len(samples), SAMPLES)]
    every = [graded(samples[i::SAMPLES]) for i in range(SAMPLES)]
    found |= {"one sample": every[0], "best of 8 samples": list(map(max, zip(*every)))}
    for way, scores in (("likeliest sample", total), ("likeliest sample, per token", mean)):
        found[way] = graded([row[i] for row, i in zip(rows, scores.argmax(1).tolist())])

    right = [tokenizer.encode(task.response).ids for task in tasks]
    likelier = likelihoods(model, prompts, right, eos)[0] > likelihoods(model, prompts, greedy, eos)[0]
    return found | {"likelier": 100 * likelier.float().mean().item()}


def likelihoods(model, prompts, answers, eos: int):
    """`log_likelihoods` of answers with their EOS, which those that were cut do not have."""
    examples = []
    for prompt, answer in zip(prompts, answers):
        ended = answer + [eos] * (len(answer) < LONGEST)
        examples.append((prompt + ended, [IGNORE] * len(prompt) + ended))
    return log_likelihoods(model, examples)


def run(bases, workers) -> list[dict]:
    jobs = {name: (1, remembered, "decoded", decoded, epochs) for name, (_, epochs) in MODELS.items()}
    rows = []
    for name, of_bases in on_each(bases, jobs, workers).items():
        greedy = [found["greedy"] for found in of_bases]
        for way in WAYS:
            rows.append({"model": name, "decoding": way, **summary([found[way] for found in of_bases], greedy),
                         "right one likelier than greedy": [round(found["likelier"], 2) for found in of_bases]})
    return rows


def draw(rows) -> str:
    return bars("Right answers under different ways of decoding, %",
                [(name, color) for name, (color, _) in MODELS.items()], grouped(rows, "decoding", "right"))
