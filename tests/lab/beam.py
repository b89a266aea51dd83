"""Beam search, which looks for likely whole texts where greedy decoding looks for likely tokens."""
import torch

from model import KVCache


@torch.inference_mode()
def beam_search(model, prompt: list[int], eos_id: int, longest: int, width: int = 5) -> list[int]:
    """The likeliest ended response that is found when `width` beginnings stay open; where none ends, the likeliest."""
    cache = KVCache(model, width, len(prompt) + longest)
    logits = model(torch.tensor([prompt] * width), cache)[:, -1]  # (width, V)
    cache.advance(len(prompt))
    scores = torch.tensor([0.0] + [-torch.inf] * (width - 1))  # they begin alike: only the first may be continued
    texts, best, best_score = [[]] * width, None, -torch.inf
    for _ in range(longest):
        # The likeliest continuations: those that end compete for the best, of the others `width` stay open.
        total = scores[:, None] + logits.log_softmax(-1)  # (width, V)
        top, places = total.flatten().topk(2 * width)
        opened = []
        for score, place in zip(top.tolist(), places.tolist()):
            row, token = divmod(place, total.shape[1])
            if token == eos_id and score > best_score:
                best, best_score = texts[row], score
            if token != eos_id and len(opened) < width:
                opened.append((score, row, token))
        if best_score >= opened[0][0]:
            break  # what is open can only become less likely

        # One more step of the model.
        values, rows, tokens = zip(*opened)
        scores = torch.tensor(values)
        texts = [texts[row] + [token] for row, token in zip(rows, tokens)]
        cache.keep(torch.tensor(rows))
        logits = model(torch.tensor(tokens)[:, None], cache)[:, -1]  # (width, V)
        cache.advance(1)
    return texts[0] if best is None else best
