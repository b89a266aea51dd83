"""How each question's function is called: plain inputs (see plain.py) in, plain values out.

It runs in the child, beside the submission, in a folder that holds the code to be called. So nothing here knows a
right answer, and everything is imported only when it is called.
"""
import numpy as np
import torch


def model_of(spec):
    """A small Llama with numpy's random weights, which are the same on every processor; or a golden checkpoint."""
    from model import Config, Llama

    if "golden" in spec:
        return Llama.from_pretrained(f"tests/golden/{spec['golden']}")
    model, rng = Llama(Config(**spec["config"])), np.random.RandomState(spec["seed"])
    for weight in model.parameters():
        values = rng.randn(*weight.shape) * spec.get("scale", 0.3)
        weight.data = torch.from_numpy(values + 1 if weight.ndim == 1 else values).float()
    return model


def tokenizer_of(name):
    from data.format import Tokenizer

    return Tokenizer(f"tokenizers/{name}")


def tensor(array, dtype="float32"):
    return torch.tensor(np.array(array)).to(getattr(torch, dtype))


def floats(t):
    """A float tensor with the name of its type, which is part of the answer."""
    return {"values": t, "type": str(t.dtype)}


def gradients(model):
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in (
        model.model.embed_tokens.weight, model.model.layers[0].self_attn.v_proj.weight)]


def encode(tokenizer, messages, max_length, blank=False, prompt=None):
    from data.format import IGNORE, encode

    more = {"prompt": prompt} if prompt else {}
    result = encode(tokenizer_of(tokenizer), messages, max_length, blank=blank, **more)
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(f"encode must return (ids, labels), found a {type(result).__name__}")
    ids, labels = result
    return {"ids": [int(i) for i in ids], "labels": [int(label) if label != IGNORE else "IGNORE" for label in labels]}


def summed_loss(model, ids, labels):
    from train import summed_loss

    llama = model_of(model)
    loss = summed_loss(llama, tensor(ids, "int64"), tensor(labels, "int64"))
    if loss.requires_grad:
        loss.backward()
    return {"loss": loss, "type": str(loss.dtype), "gradients": gradients(llama)}


def accumulate_gradient(model, examples, token_budget, times=1):
    """times: how many steps' gradients are added. Every batch must fit the budget, but for one example alone; padding
    may double it."""
    from train import accumulate_gradient

    llama, most = model_of(model), 0
    longest, hidden = max(len(ids) for ids, _ in examples), llama.hidden

    def watched(ids, *more, **named):
        nonlocal most
        most = max(most, ids.numel())
        return hidden(ids, *more, **named)

    llama.hidden = watched
    losses = [accumulate_gradient(llama, [tuple(pair) for pair in examples], token_budget) for _ in range(times)]
    return {"losses": [float(loss) for loss in losses], "gradients": gradients(llama),
            "within the budget": most <= max(2 * token_budget, longest)}


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
    """The logits of ragged rows: of all tokens at once, and of the last three with a cache."""
    llama, ids, lengths = model_of(model), tensor(ids, "int64"), tensor(lengths, "int64")
    whole, cache = llama(ids), llama.new_cache(*ids.shape)
    llama(ids[:, : int(lengths.max())], cache)
    rows, cached = torch.arange(len(ids)), []
    for step in range(3):
        columns = lengths + step
        cached.append(llama(ids[rows, columns][:, None], cache, columns)[:, 0])
    return {"whole": whole, "cached": torch.stack(cached, 1)}


def choose(logits, temperature, top_p, n=1):
    """n draws from each row: which tokens can be drawn, and how often. Greedy choices are the tokens themselves."""
    from generate import choose

    logits = tensor(logits)
    if temperature == 0:
        return choose(logits, 0, top_p).tolist()
    many = logits.repeat_interleave(n, 0)

    def drawn(rows):
        return choose(rows.clone(), temperature, top_p, torch.Generator().manual_seed(7))

    first, few = drawn(many), [drawn(many[:200]) for _ in range(2)]
    counts = [row.bincount(minlength=logits.shape[1]) for row in first.view(-1, n)]
    return {"drawn": [(row > 0).tolist() for row in counts], "how often": torch.stack(counts) / n,
            "type": str(first.dtype), "the same generator draws the same": bool((few[0] == few[1]).all())}


def rules(spec, vocab_size):
    """An Adapter with given numbers, whatever tokens they come from."""
    from adapter import Adapter

    adapter, shift = object.__new__(Adapter), torch.zeros(vocab_size)
    for token, value in spec["shifts"]:
        shift[token] = value
    vars(adapter).update(eos_id=spec["eos_id"], eos_slope=spec["eos_slope"], repeat_penalty=spec["repeat_penalty"],
                         penalise_prompt=spec["penalise_prompt"], token_shift=shift)
    return adapter


def generate(model, prompts, max_new_tokens, eos_at=None, adapter=None, temperature=0.0, top_p=1.0,
             cache_block=128):
    """eos_at: EOS is the token that the first answer has at that place. Positions: how many the model was given."""
    import generate as module
    from generate import generate, generate_slowly

    module.CACHE_BLOCK = cache_block
    llama, positions, told = model_of(model), 0, []
    room = min(max_new_tokens, llama.config.context)
    spec = adapter and {**adapter, "eos_id": 1}
    eos_id = -1 if adapter is None else 1
    if eos_at is not None:
        eos_id = generate_slowly(llama, prompts[0], -1, room)[eos_at]
        spec = adapter and {**adapter, "eos_id": eos_id}
    hidden = llama.hidden

    def watched(ids, *more, **options):
        nonlocal positions
        positions += ids.numel()
        return hidden(ids, *more, **options)

    llama.hidden = watched
    try:
        answers = generate(llama, prompts, eos_id, max_new_tokens, temperature=temperature, top_p=top_p,
                           generator=torch.Generator().manual_seed(1),
                           adapter=spec and rules(spec, llama.config.vocab_size),
                           on_token=lambda row, token: told.append((int(row), int(token))))
    except ValueError:
        return "ValueError"
    answers = [[int(token) for token in answer] for answer in answers]
    most = len(prompts) * (max(map(len, prompts)) + max(map(len, answers), default=0) + 1)
    return {"answers": answers, "told": [[token for i, token in told if i == row] for row in range(len(prompts))],
            "every token once through the model": positions <= most}


def scores(spec, seen, n):
    adapter, seen = rules(spec, len(seen[0])), tensor(seen, "bool")
    before = adapter.token_shift.clone()
    values = [adapter.scores(seen, n).clone() for n in (n, n)]
    return {"scores": values, "token_shift is as before": bool((adapter.token_shift == before).all())}


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

    def one(choice):
        try:
            return preference_for_second(choice)
        except ValueError:
            return "ValueError"
        except (LookupError, TypeError, AttributeError):
            return "LookupError, TypeError or AttributeError"

    return [one(choice) for choice in choices]


class Knowing:
    """A model that finds the words of its prompt likely, each as likely as another: so there are exact ties."""

    def __init__(self, vocab_size, context):
        self.V, self.config = vocab_size, type("config", (), {"context": context})
        self.device = torch.device("cpu")

    def hidden(self, ids):
        return 5.0 * torch.nn.functional.one_hot(ids, self.V).cumsum(1).clamp(max=1)  # (B, T, V)

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
