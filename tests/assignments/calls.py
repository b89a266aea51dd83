"""How each question's function is called: plain inputs in, plain values out.

It runs in the worker, beside the submission, in a folder that holds the code to be called. So nothing here knows a
right answer, and everything is imported only when it is called.
"""
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import torch


def model_of(spec):
    """A small Llama with numpy's random weights, which are the same on every processor; or a golden checkpoint."""
    from model import Config, Llama
    if "golden" in spec:
        return Llama.from_pretrained(f"tests/golden/{spec['golden']}")
    model, rng = Llama(Config(**spec["config"])), np.random.RandomState(spec["seed"])
    for weight in model.parameters():
        values = 0.3 * rng.randn(*weight.shape)
        weight.data = torch.from_numpy(values + 1 if weight.ndim == 1 else values).float()
    return model


def tokenizer_of(name):
    from data.format import Tokenizer
    return Tokenizer(f"tokenizers/{name}")


def tensor(values, dtype="float32"):
    return torch.tensor(values).to(getattr(torch, dtype))


def floats(t):
    """A float tensor with the name of its type, which is part of the answer."""
    return {"values": t, "type": str(t.dtype)}


def gradients(model):
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in (
        model.model.embed_tokens.weight, model.model.layers[0].self_attn.v_proj.weight)]


@contextmanager
def counted():
    """A list to which every use of a model in the block adds the number of its tokens, with the padding.

    The count is the class's, so a submission that takes an attribute from its model changes nothing.
    """
    from model import Llama
    sizes, hidden = [], Llama.hidden

    def watched(self, ids, cache=None, shared=None, **more):
        sizes.append(ids.numel() if shared is None else shared[0].numel())
        return hidden(self, ids, cache, shared, **more)

    with patch.object(Llama, "hidden", watched):
        yield sizes


def encode(tokenizer, messages, max_length, blank=False, prompt=None):
    from data.format import IGNORE, encode
    more = {"prompt": prompt} if prompt else {}
    result = encode(tokenizer_of(tokenizer), messages, max_length, blank=blank, **more)
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(f"encode must return (ids, labels), found a {type(result).__name__}")
    ids, labels = result
    return {"ids": [int(i) for i in ids], "labels": [int(label) if label != IGNORE else "IGNORE" for label in labels]}


def summed_loss(model, examples):
    from train import collate, summed_loss
    llama = model_of(model)
    loss = summed_loss(llama, collate([tuple(example) for example in examples], llama.device))
    if loss.requires_grad:
        loss.backward()
    return {"loss": loss, "type": str(loss.dtype), "gradients": gradients(llama)}


def accumulate_gradient(model, examples, token_budget, times=1):
    """times: how many steps' gradients are added. Every batch must fit the budget, but for one example alone; padding
    may double it."""
    from train import accumulate_gradient
    llama, examples = model_of(model), [tuple(example) for example in examples]
    with counted() as sizes:
        losses = [float(accumulate_gradient(llama, examples, token_budget)) for _ in range(times)]
    most = max(2 * token_budget, *(len(ids) for ids, _ in examples))
    return {"losses": losses, "gradients": gradients(llama), "within the budget": max(sizes) <= most}


def learning_rate(n_steps, peak, **options):
    from train import learning_rate
    return [float(learning_rate(step, n_steps, peak, **options)) for step in range(n_steps)]


def RMSNorm(x, weight, eps, dtype):
    from model import RMSNorm
    norm = RMSNorm(len(weight), eps)
    norm.weight.data = tensor(weight)
    return floats(norm(tensor(x, dtype)))


def rotary_angles(positions, config):
    from model import Config, rotary_angles
    return [floats(t) for t in rotary_angles(tensor(positions, "int64"), Config(**config))]


def rotate(x, cos, sin, dtype):
    from model import rotate
    return floats(rotate(tensor(x, dtype), tensor(cos), tensor(sin)))


def attend(q, k, v, mask, dtype):
    from model import attend
    q, k, v = (tensor(t, dtype) for t in (q, k, v))
    return floats(attend(q, k, v) if mask is None else attend(q, k, v, tensor(mask, "bool")))


def MLP(x, config, seed):
    model = model_of({"config": config, "seed": seed})
    return floats(model.model.layers[0].mlp(tensor(x)))


def logits(model, ids, lengths):
    """The logits of ragged rows: of all tokens at once, and of three more of each row with a cache."""
    from model import KVCache
    llama, ids, lengths = model_of(model), tensor(ids, "int64"), tensor(lengths, "int64")
    cache, rows, cached = KVCache(llama, *ids.shape), torch.arange(len(ids)), []
    llama(ids[:, : int(lengths.max())], cache)
    cache.advance(lengths)
    for step in range(3):
        cached.append(llama(ids[rows, lengths + step][:, None], cache)[:, 0])
        cache.advance(1)
    return {"whole": llama(ids), "cached": torch.stack(cached, 1)}


def choose(logits, temperature, top_p, n=1):
    """n draws from each row: which tokens can be drawn, and how often. Greedy choices are the tokens themselves."""
    from generate import choose
    if temperature == 0:
        return choose(tensor(logits), 0, top_p)
    many = tensor(logits).repeat_interleave(n, 0)

    def drawn(rows):
        return choose(rows.clone(), temperature, top_p, torch.Generator().manual_seed(7))

    first, few = drawn(many), [drawn(many[:200]) for _ in range(2)]
    counts = torch.stack([row.bincount(minlength=many.shape[1]) for row in first.view(-1, n)])
    return {"drawn": counts > 0, "how often": counts / n, "type": str(first.dtype),
            "the same generator draws the same": bool((few[0] == few[1]).all())}


def rules(spec, vocab_size):
    """An Adapter with given numbers, whatever tokens they come from."""
    from adapter import Adapter
    adapter = object.__new__(Adapter)
    vars(adapter).update(spec, token_shift=torch.zeros(vocab_size))
    for token, value in spec["shifts"]:
        adapter.token_shift[token] = value
    return adapter


def generate(model, prompts, max_new_tokens, eos_at=None, adapter=None, temperature=0.0, top_p=1.0, block=128):
    """eos_at: EOS is the token that the first answer has at that place. block: by how much a cache grows."""
    from generate import generate, generate_slowly
    from model import KVCache
    llama, told = model_of(model), [[] for _ in prompts]
    eos_id = 1 if adapter else -1
    if eos_at is not None:
        eos_id = generate_slowly(llama, prompts[0], -1, min(max_new_tokens, llama.config.context))[eos_at]
    if adapter:
        adapter = rules({**adapter, "eos_id": eos_id}, llama.config.vocab_size)
    with counted() as sizes, patch.object(KVCache, "BLOCK", block):
        try:
            answers = generate(llama, prompts, eos_id, max_new_tokens, temperature=temperature, top_p=top_p,
                               generator=torch.Generator().manual_seed(1), adapter=adapter,
                               on_token=lambda row, token: told[row].append(int(token)))
        except ValueError:
            return "ValueError"
    most = len(prompts) * (max(map(len, prompts)) + max(map(len, answers), default=0) + 1)
    return {"answers": [[int(token) for token in answer] for answer in answers], "told": told,
            "every token once through the model": sum(sizes) <= most}


def scores(spec, seen, n):
    adapter, seen = rules(spec, len(seen[0])), tensor(seen, "bool")
    before = adapter.token_shift.clone()
    return {"scores": [adapter.scores(seen, n).clone() for _ in range(2)],
            "token_shift is as before": bool((adapter.token_shift == before).all())}


def win_rate(preferences):
    from judge import win_rate
    return [float(x) for x in win_rate(preferences)]


def length_controlled(preferences, lengths, reference_lengths, difficulties=0.0, gamed=()):
    """Of the answers, and of the same pairs with their sides swapped: together 100, if there are no difficulties."""
    from judge import length_controlled
    swapped, known = [None if p is None else 1 - p for p in preferences], (np.array(difficulties), np.array(gamed))
    return [float(length_controlled(preferences, lengths, reference_lengths, *known)),
            float(length_controlled(swapped, reference_lengths, lengths, *known))]


def preference_for_second(choices):
    from judge import preference_for_second
    values = []
    for choice in choices:
        try:
            values.append(preference_for_second(choice))
        except ValueError:
            values.append("ValueError")
        except (LookupError, TypeError, AttributeError):
            values.append("LookupError, TypeError or AttributeError")
    return values


class Knowing:
    """A model that finds the words of its prompt likely, each as likely as another: so there are exact ties."""

    def __init__(self, vocab_size, context):
        self.V, self.config, self.device = vocab_size, type("config", (), {"context": context}), torch.device("cpu")

    def hidden(self, ids, cache=None, shared=None, wanted=None):
        rows = ids if shared is None else ids[0, shared[0]]
        h = 5.0 * torch.nn.functional.one_hot(rows, self.V).cumsum(1).clamp(max=1)  # (B, T, V)
        h = h if shared is None else h.flatten(0, 1)[shared[1]]  # (1, N, V)
        return h if wanted is None else h.flatten(0, 1)[wanted]

    def logits(self, h):
        return h


def rank_responses(tokenizer, rows, context, model=None, broken=False):
    from judge import rank_responses
    llama = model_of(model) if model else Knowing(700, context)
    if broken:
        llama.logits = lambda h: torch.nan * h
    try:
        return rank_responses(llama, tokenizer_of(tokenizer), [tuple(row) for row in rows])
    except ValueError:
        return "ValueError"
