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
    texts, best = [[]] * width, (-torch.inf, None)
    for _ in range(longest):
        total = scores[:, None] + logits.log_softmax(-1)  # (width, V)
        top, places = total.flatten().topk(2 * width)
        opened = []
        for score, place in zip(top.tolist(), places.tolist()):
            row, token = divmod(place, total.shape[1])
            if token == eos_id:
                best = max(best, (score, texts[row]), key=lambda pair: pair[0])
            elif len(opened) < width:
                opened.append((score, row, token))
        if best[0] >= opened[0][0]:
            break  # what is open can only become less likely
        values, rows, tokens = zip(*opened)
        scores = torch.tensor(values)
        texts = [texts[row] + [token] for row, token in zip(rows, tokens)]
        cache.keep(torch.tensor(rows))
        logits = model(torch.tensor(tokens)[:, None], cache)[:, -1]  # (width, V)
        cache.advance(1)
    return texts[0] if best[1] is None else best[1]
