"""The three-rule adapter: instruction following with no training at all (section 6.1, Table 8).

    p(w | x) ∝ p_base(w | x) · p_rules(w | x)            (equation 4)

p_rules is the softmax of three summed rule scores, so the product of experts is an addition of
those scores to the base model's logits.

    python generate.py --model data/tiny --rules all --prompt "What is the capital of Brabrol?"
"""
import sys

import torch

RULES = ("eos", "tokens", "repeats")
EOS_SLOPE = 15 / 250  # rule 1: score of EOS per token of response
TOKEN_SHIFTS = {  # rule 2
    "<": -4, " <": -4, "|": -4, " I": -5, "I": -5, " We": -3, "What": -5, " should": -6,
    " *": 1, " -": 1, "   ": 1, " #": 1, " ##": 1, "\n": 1, "!": 1,
}
REPEAT_PENALTY = 1.5  # rule 3


class Adapter:
    """The rules in `rules`, a subset of RULES, for a tokenizer and a model of vocab_size logits.

    Rule 3 has two readings. In the paper's text it penalises the tokens of the response so far; in the authors' code,
    with which the paper's figures were made, those of the prompt as well: penalise_prompt. Where a model has several
    EOS tokens, rule 1 raises the first, with which training ends a response, too.
    One more difference from their code: the slope of rule 1 goes on past 250 tokens (where the code, by a slip that
    its authors note, drops it to zero).
    """

    def __init__(self, tokenizer, vocab_size: int, rules=RULES, device="cpu", penalise_prompt=False):
        if unknown := set(rules) - set(RULES):
            raise ValueError(f"unknown rule {sorted(unknown)[0]!r}; the rules are {', '.join(RULES)}")
        self.eos_id = tokenizer.eos_id
        self.eos_slope = EOS_SLOPE if "eos" in rules else 0.0
        self.repeat_penalty = REPEAT_PENALTY if "repeats" in rules else 0.0
        self.penalise_prompt = penalise_prompt
        self.token_shift = torch.zeros(vocab_size, device=device)  # (V,)
        if "tokens" in rules:
            ids = {text: token_id(tokenizer.bpe, text) for text in TOKEN_SHIFTS}
            for text, i in ids.items():
                if i is not None:
                    self.token_shift[i] = TOKEN_SHIFTS[text]
            if absent := [text for text, i in ids.items() if i is None]:
                print(f"rule 2: no single token for {', '.join(map(repr, absent))} in this vocabulary", file=sys.stderr)

    def seen_at_first(self, prompts: list[list[int]]):
        """What rule 3 penalises before the first token of a response, (B, V) bool: nothing, or the prompts' tokens."""
        seen = torch.zeros(len(prompts), len(self.token_shift), dtype=torch.bool, device=self.token_shift.device)
        if self.penalise_prompt:
            for row, prompt in zip(seen, prompts):
                row[prompt] = True
        return seen

    def scores(self, seen, n: int):
        """r(w, x): the summed rule scores, before the softmax (section 6.1, Table 8).

        seen: (B, V) bool, the tokens of each response, on top of `seen_at_first`; n: the responses' length in tokens.
        Every token has its token_shift; those in `seen` lose repeat_penalty; EOS gains eos_slope * n. Returns (B, V).
        """
        r = torch.where(seen, self.token_shift - self.repeat_penalty, self.token_shift)  # rules 2 and 3, (B, V)
        r[:, self.eos_id] += self.eos_slope * n  # rule 1
        return r


def token_id(bpe, text: str) -> int | None:
    """The one token that spells `text`, as SentencePiece, byte-level BPE or byte fallback spell it; or None."""
    spellings = [text.replace(" ", "▁"), text.replace(" ", "Ġ").replace("\n", "Ċ")]
    if len(text) == 1:
        spellings.append(f"<0x{ord(text):02X}>")
    return next((i for spelling in spellings if (i := bpe.token_to_id(spelling)) is not None), None)
