"""The cases of each question: inputs alone, made from a seed. What is right, the clean tree says (grade.py).

Seed 0 is what the handout shows. Another seed is another world, other shapes, tokenizers, formats and constants of the
same kinds, so hidden cases ask for nothing that visible ones do not.
"""
import hashlib
import json
import math
import random
from functools import cache

import numpy as np

from bpe import byte_level, sentencepiece
from data.world import World

TOKENIZERS = ("bytes", "bytes-without-bos", "sentencepiece")
PAPER = {"eos_slope": 15 / 250, "repeat_penalty": 1.5}


def cases_of(question: str, seed: int) -> list[dict]:
    """[{"name", "call": a function of calls.py, "inputs"}, ...]"""
    rng = np.random.RandomState(np.frombuffer(hashlib.sha256(f"{question} {seed}".encode()).digest(), np.uint32))
    return [{"name": name, "call": more[0] if more else question, "inputs": inputs}
            for name, inputs, *more in MAKERS[question](rng, seed)]


@cache
def files_of(assignment: int, seed: int) -> dict[str, bytes]:
    """Files that an assignment's cases read: three kinds of tokenizers in assignments 1 and 4."""
    if assignment not in (1, 4):
        return {}
    texts, files = [json.dumps(row["messages"]) for row in World(seed=seed + 3).training_set("broad", 60)], {}
    texts += ["A: Two.\n\n\nQ: é 日 🙂\n" * 3, "A:  b\n\n\n\nb"] * 30
    for name, kind, bos in zip(TOKENIZERS, (byte_level, byte_level, sentencepiece), (0, None, 0)):
        config = {"vocab_size": 700, "bos_token_id": bos, "eos_token_id": 1}
        files[f"tokenizers/{name}/tokenizer.json"] = kind(texts, 500 + seed % 50).to_str().encode()
        files[f"tokenizers/{name}/config.json"] = json.dumps(config).encode()
    return files


def config(rng, **more):
    """A small model of some shape: grouped heads, with or without a vocabulary matrix of its own."""
    groups, kv_heads, dim = int(rng.randint(2, 4)), int(rng.randint(1, 3)), int(rng.choice([4, 6, 8]))
    return {"vocab_size": int(rng.randint(40, 60)), "hidden_size": int(rng.choice([12, 16, 20])), "head_dim": dim,
            "intermediate_size": int(rng.choice([20, 24])), "num_hidden_layers": 2, "num_attention_heads":
            groups * kv_heads, "num_key_value_heads": kv_heads, "max_position_embeddings": 256, "eos_token_id": 1,
            "bos_token_id": 0, "tie_word_embeddings": bool(rng.rand() < 0.5), **more}


def model(rng, **more):
    return {"config": config(rng, **more), "seed": int(rng.randint(10**6))}


def dialogue(*texts):
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


def encode(rng, seed):
    rows = [row["messages"] for row in World(seed=seed + 3).training_set("broad", 12)]
    end = ("Q", "Human", "Ask")[seed % 3]
    turns = rows[3] + rows[4] + rows[5]
    for tokenizer, messages in zip(TOKENIZERS, rows):
        yield f"one turn, {tokenizer}", dict(tokenizer=tokenizer, messages=messages, max_length=999)
    for tokenizer in TOKENIZERS:
        yield f"three turns, {tokenizer}", dict(tokenizer=tokenizer, messages=turns, max_length=999)
    yield "empty instructions", dict(tokenizer=TOKENIZERS[0], messages=turns, max_length=999, blank=True)
    strange = dialogue("  <|user|>\nWho? \n", "\n\nI said </s> and <s>.\n  é 日本 🙂 \n")
    for tokenizer in TOKENIZERS:
        yield f"white space and strange text, {tokenizer}", dict(
            tokenizer=tokenizer, messages=strange, max_length=999)
        yield f"a format that ends in a space, {tokenizer}", dict(
            tokenizer=tokenizer, messages=dialogue("One?", "Two.", "b", "b"), max_length=999,
            prompt=f"{end}: {{instruction}}\nA: ")
    yield "cut after the first response", dict(tokenizer=TOKENIZERS[1], messages=turns, max_length=50)
    for kind, length in (("one token", 1), ("early", 12), ("later", 33), ("late", 40 + seed % 9)):
        yield f"cut, {kind}", dict(tokenizer=TOKENIZERS[0], messages=rows[6], max_length=length)


def examples(rng, spec, lengths, scored: float):
    """(ids, labels) pairs as lists; a share of the labels is scored. The second begins as the first does."""
    pairs = []
    for length in lengths:
        ids = rng.randint(2, spec["config"]["vocab_size"], length + int(rng.randint(3)))
        if len(pairs) == 1:
            n_alike = min(len(ids), len(pairs[0][0]), 3)
            ids[:n_alike] = pairs[0][0][:n_alike]
        pairs.append([ids.tolist(), np.where(rng.rand(len(ids)) < scored, ids, -100).tolist()])
    return pairs


def summed_loss(rng, seed):
    for name, lengths, scored in [("one sequence", [12], 0.5), ("ragged rows", [5, 17, 9], 0.4),
                                  ("every token scored, the first too", [8, 11], 1.0),
                                  ("few scored", [14, 6, 3, 20], 0.15), ("nothing scored", [4, 7], 0.0)]:
        for tied in (True, False):
            spec = model(rng, tie_word_embeddings=tied)
            yield f"{name}, {'tied' if tied else 'own'} vocabulary matrix", dict(
                model=spec, examples=examples(rng, spec, lengths, scored))


def accumulate_gradient(rng, seed):
    spec, pairs = model(rng), []
    for length in [5, 9, 26, 3, 12, 18, 7]:
        [(ids, labels)] = examples(rng, spec, [length], rng.choice([0.2, 0.6, 0.9]))
        pairs.append([ids, labels[:-1] + ids[-1:]])
    for budget in (10000, 60, 30, 20, 1):
        yield f"cut into batches of at most {budget} tokens", dict(model=spec, examples=pairs, token_budget=budget)
    yield "one example", dict(model=spec, examples=pairs[2:3], token_budget=100)
    yield "two steps are added", dict(model=spec, examples=pairs[:4], token_budget=25, times=2)


def learning_rate(rng, seed):
    n, peak = int(rng.randint(20, 60)), float(rng.uniform(1e-5, 1e-3))
    for name, steps, options in [("the paper's text", n, {}), ("its scripts", n, dict(schedule="linear", warmup=0.03)),
                                 ("a long line", 7 * n, dict(schedule="linear", warmup=0.217)),
                                 ("half a rise", n, dict(warmup=0.503)), ("no warm-up", n, dict(warmup=0.0)),
                                 ("one step", 1, {}), ("nothing but a rise", 13, dict(warmup=1.0))]:
        yield name, dict(n_steps=steps, peak=peak, **options)


def whole(rng, seed, golden):
    """The whole model with the function in its place."""
    lengths = [3, 11, 7]
    yield f"logits of the golden checkpoint {golden}, and with a cache", dict(
        model={"golden": golden}, ids=rng.randint(3, 100, (3, 14)), lengths=lengths), "logits"
    yield "logits of ragged rows, and with a cache", dict(
        model=model(rng), ids=rng.randint(3, 40, (3, 15)), lengths=lengths), "logits"


def checkpoint(seed, *hidden):
    return hidden[seed % len(hidden)] if seed else "llama31"


def RMSNorm(rng, seed):
    C = int(rng.choice([6, 10, 16]))
    for name, scale, dtype in [("plain", 1, "float32"), ("small, so that eps counts", 2e-3, "float32"),
                               ("large fp16, whose squares overflow", 600, "float16"), ("bf16", 1, "bfloat16")]:
        yield name, dict(x=rng.randn(2, 3, C) * scale, weight=1 + 0.3 * rng.randn(C),
                         eps=[1e-5, 3e-6, 2e-5][seed % 3], dtype=dtype)
    yield from whole(rng, seed, checkpoint(seed, "llama2", "smollm2"))


SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def rotary_angles(rng, seed):
    dim, theta = int(rng.choice([8, 12, 16])), float(rng.choice([10000, 500000, 300]))
    for name, more in (("plain", {}), ("scaled as Llama 3.1", {"rope_scaling": SCALING | {
            "original_max_position_embeddings": int(rng.randint(40, 90))}})):
        shape = config(rng, head_dim=dim, rope_theta=theta, **more)
        yield f"{name}, positions 0, 1, 2, ...", dict(positions=np.arange(9), config=shape)
        yield f"{name}, positions of three rows", dict(positions=rng.randint(0, 200, (3, 5)), config=shape)
    yield from whole(rng, seed, "llama31")


def rotate(rng, seed):
    for name, dtype, rows in (("one batch", "float32", 1), ("angles of their own for each row", "float32", 3),
                              ("bf16", "bfloat16", 1)):
        B, T, H, D = 3, int(rng.randint(2, 6)), int(rng.randint(1, 4)), int(rng.choice([4, 6, 8]))
        angles = rng.uniform(0, 6, (rows, T, 1, D // 2))
        yield name, dict(x=rng.randn(B, T, H, D), cos=np.cos(angles), sin=np.sin(angles), dtype=dtype)
    yield from whole(rng, seed, checkpoint(seed, "llama2", "mistral", "olmo"))


def attend(rng, seed):
    D, T = int(rng.choice([4, 6, 8])), int(rng.randint(3, 7))
    for name, kv_heads, groups, dtype in [("as many key heads", 3, 1, "float32"), ("grouped", 2, 3, "float32"),
                                          ("one key head", 1, 4, "float32"), ("grouped, bf16", 2, 2, "bfloat16")]:
        q, k, v = (rng.randn(2, heads, T, D) * 2 for heads in (kv_heads * groups, kv_heads, kv_heads))
        yield f"causal, {name}", dict(q=q, k=k, v=v, mask=None, dtype=dtype)
        k, v = (rng.randn(2, kv_heads, T + 5, D) * 2 for _ in "kv")
        lengths = np.array([2, 4])[:, None] + np.arange(T)  # (B, T)
        mask = np.arange(T + 5) <= lengths[..., None]  # (B, T, S)
        yield f"with a mask for each row, {name}", dict(q=q, k=k, v=v, mask=mask, dtype=dtype)
        yield f"with one mask for all, {name}", dict(q=q, k=k, v=v, mask=mask[1:], dtype=dtype)
    yield from whole(rng, seed, checkpoint(seed, "smollm2", "mistral"))


def MLP(rng, seed):
    for i in range(2):
        shape = config(rng)
        yield f"shape {i + 1}", dict(
            x=rng.randn(2, 3, shape["hidden_size"]), config=shape, seed=int(rng.randint(10**6)))
    yield from whole(rng, seed, checkpoint(seed, "olmo", "llama2"))


def choose(rng, seed):
    ties = rng.randn(5, 12).round(1)
    ties[:, [3, 7]] = 9
    yield "greedy; of equals the first", dict(logits=ties, temperature=0, top_p=1.0)
    p = rng.dirichlet([9] * 7, 2) * 0.86 + 0.02  # no probability near 0, so that every token is drawn
    logits = np.log(p / p.sum(1, keepdims=True)) + rng.randn(2, 1)
    flat, sharp = 2.0 + seed % 3 / 10, 0.7 + seed % 2 / 10
    for name, t, nucleus in [("temperature 1", 1.0, 1.0), ("hotter", flat, 1.0), ("the nucleus", 1.0, 0.55),
                             ("a nucleus of one", 1.0, 1e-6), ("hotter, with a nucleus", flat, 0.62),
                             ("colder, with a nucleus", sharp, 0.7)]:
        yield name, dict(logits=logits, temperature=t, top_p=nucleus, n=20000)


def rule_numbers(rng, seed):
    """The paper's constants in what the handout shows, others elsewhere."""
    numbers = dict(PAPER) if not seed else {
        "eos_slope": float(rng.uniform(0.05, 0.2)), "repeat_penalty": float(rng.uniform(1, 3))}
    return numbers | {"eos_id": int(rng.randint(2, 9)), "penalise_prompt": False,
                      "shifts": [[int(token), float(rng.choice([-5, -3, 1]))] for token in rng.permutation(30)[:8]]}


def scores(rng, seed):
    for name, n, share in [("before the first token", 0, 0.0), ("after one token", 1, 0.1), ("after 40", 40, 0.3),
                           ("after 300", 300, 0.9)]:
        for numbers in (rule_numbers(rng, seed), rule_numbers(rng, seed) | {"repeat_penalty": 0.0}):
            kind = "all rules" if numbers["repeat_penalty"] else "without rule 3"
            yield f"{name}, {kind}", dict(spec=numbers, seen=rng.rand(3, 33) < share, n=n)


def generate(rng, seed):
    spec, V = model(rng), 40
    def ask(*lengths):
        return [rng.randint(2, V, length).tolist() for length in lengths]
    yield "one prompt", dict(model=spec, prompts=ask(6), max_new_tokens=20)
    yield "ragged prompts", dict(model=spec, prompts=ask(3, 19, 8, 1), max_new_tokens=15)
    for at in (0, 3, 9):
        yield f"EOS at place {at}", dict(model=spec, prompts=ask(7, 4, 12, 9, 5), max_new_tokens=16, eos_at=at)
    yield "sampled from a nucleus of one", dict(
        model=spec, prompts=ask(5, 2), max_new_tokens=12, temperature=1.0, top_p=1e-6)
    yield "longer than the cache is at first", dict(
        model=spec, prompts=ask(11, 3), max_new_tokens=14 + seed % 9, block=4)
    small = model(rng, max_position_embeddings=24)
    yield "until the context is full", dict(model=small, prompts=ask(20, 5), max_new_tokens=99)
    yield "no room to answer", dict(model=small, prompts=ask(3, 24), max_new_tokens=4)
    for i in range(2):
        yield f"under the rules, {i + 1}", dict(
            model=spec, prompts=ask(4, 13, 7), max_new_tokens=20, adapter=rule_numbers(rng, seed))
    strong = rule_numbers(rng, seed) | {"repeat_penalty": 20.0, "eos_slope": 2.0 + seed % 3}
    yield "under strong rules", dict(model=spec, prompts=ask(15, 6, 3), max_new_tokens=24, adapter=strong, eos_at=12)
    yield "under strong rules, the prompt penalised", dict(
        model=spec, prompts=ask(9, 5), max_new_tokens=15, adapter=strong | {"penalise_prompt": True})


def win_rate(rng, seed):
    for name, p in [("wins and losses", rng.rand(9).round() * 1.0), ("a matter of degree", rng.rand(30)),
                    ("ties", np.full(7, 0.5)), ("two", rng.rand(2)), ("one", rng.rand(1))]:
        yield name, dict(preferences=p.tolist())


def length_controlled(rng, seed):
    for n in (12, 60):
        lengths, others = (rng.randint(20, size, n) for size in (900, 500))
        z = 1.5 * np.tanh((lengths - others) / 200) - 0.6 + rng.randn(n)
        p = (1 / (1 + np.exp(-z))).round(3)
        pairs = dict(preferences=p.tolist(), lengths=lengths.tolist(), reference_lengths=others.tolist())
        yield f"{n} pairs", pairs
        difficulties = rng.randn(n).round(2)
        shorter = np.stack([rng.rand(n) / 3, -2 - rng.rand(n), difficulties], axis=1)
        longer = np.stack([0.5 + rng.rand(n) / 3, 1 + rng.rand(n), difficulties], axis=1)
        known = dict(difficulties=difficulties.tolist(), gamed=[*shorter.tolist(), *longer.tolist()])
        yield f"{n} pairs, difficulties known", pairs | known
        yield f"{n} pairs, some not judged", pairs | known | dict(preferences=[None] * (n // 4) + p.tolist()[n // 4 :])
    p = rng.rand(8).round(2).tolist()
    yield "equal lengths", dict(preferences=p, lengths=[9] * 8, reference_lengths=[9] * 8)
    yield "all longer by the same", dict(preferences=p, lengths=[30] * 8, reference_lengths=[9] * 8)
    yield "one pair", dict(preferences=[0.7], lengths=[40], reference_lengths=[20])
    longer = np.arange(10) * 7
    yield "the longer nearly always wins", dict(preferences=np.where(longer > 30, 0.95, 0.05).tolist(),
                                                lengths=longer.tolist(), reference_lengths=[33] * 10)


def preference_for_second(rng, seed):
    def choice(top, said="?"):
        return {"message": {"content": said}, "logprobs": {"content": [{"top_logprobs": [
            {"token": token, "logprob": math.log(p)} for token, p in top]}]}}
    a, b, c = (float(p) for p in rng.dirichlet([3, 3, 3]) * 0.8)
    yield "log-probabilities", dict(choices=[choice([("m", a), ("M", b)]), choice([("M", a), ("x", b), ("m", c)])])
    yield "names in other dress", dict(choices=[
        choice([(" m", a), ("M", b), ("**M**", c)]), choice([("'m'", a), ("▁M", b), ("\nm", c)]),
        choice([("Mm", a), ("m.", b)]), choice([("model", a), ('"M"', b)])])
    yield "one name alone", dict(choices=[choice([("m", a), ("x", b)]), choice([("M", a)])])
    yield "only the first position counts", dict(choices=[{"message": {"content": "m"}, "logprobs": {"content": [
        *choice([("m", a), ("M", b)])["logprobs"]["content"], *choice([("M", c)])["logprobs"]["content"]]}}])
    plain = [{"message": {"content": text}} for text in ("m", " M\n", "neither", "m or M", "", None)]
    empty = [plain[0] | {"logprobs": logprobs} for logprobs in (None, {"content": None}, {"content": []},
                                                                {"content": [{"top_logprobs": None}]})]
    yield "the message decides", dict(choices=plain + empty + [choice([("x", a)], "M"), choice([("x", a)], "x")])
    tiny, wrong = choice([("m", a), ("M", b)], "M"), choice([("m", a)], "m")
    for top in tiny["logprobs"]["content"][0]["top_logprobs"]:
        top["logprob"] = -1e4
    above = [choice([("M", math.exp(0.005)), ("m", b)]), choice([("M", math.exp(0.02))]), wrong]
    wrong["logprobs"]["content"][0]["top_logprobs"][0]["logprob"] = math.nan
    yield "sums of 0, and what is no logarithm of a probability", dict(choices=[tiny, *above])
    yield "missing parts", dict(choices=[{}, {"message": {}}, {"message": {"content": 3}}, {"message": None}])


def rank_responses(rng, seed):
    world, mix = World(seed=seed + 3), random.Random(seed)
    pairs = [[m["content"] for m in row["messages"]] for row in world.training_set("poetry", 4)]
    pairs += [[m["content"] for m in row["messages"]] for row in world.training_set("broad", 9)]
    rows = [[*pair, [other for _, other in mix.sample(pairs, 3)]] for pair in pairs]
    rows = [[asked, own, [text for text in rivals if text != own]] for asked, own, rivals in rows]
    for tokenizer in ("bytes", "sentencepiece"):
        spec = model(rng, vocab_size=700, max_position_embeddings=220)
        yield f"a random model, {tokenizer}", dict(tokenizer=tokenizer, rows=rows, context=220, model=spec)
    a, b, c = world.subjects["countries"][:3]
    easy = [[a, a, [b, c]], [a, b, [a, b]], [c, c, [c]]]
    yield "a model that repeats the prompt; ties", dict(tokenizer="bytes", rows=easy, context=99)
    long = [[b, b, [c, "long " * 60]], ["long " * 60, b, [a]], [a, "long " * 60, [b, c]]]
    yield "texts that do not fit are left out", dict(tokenizer="bytes", rows=easy + long, context=99)
    yield "nothing fits", dict(tokenizer="bytes", rows=long[1:], context=99)
    yield "no finite likelihood", dict(tokenizer="bytes", rows=easy, context=99, broken=True)


MAKERS = {maker.__name__: maker for maker in (
    encode, summed_loss, accumulate_gradient, learning_rate, RMSNorm, rotary_angles, rotate, attend, MLP, choose,
    generate, scores, win_rate, length_controlled, preference_for_second, rank_responses)}
