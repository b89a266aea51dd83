"""adapter.py: the rules by hand, and added to the log-probabilities in decoding (section 6, equation 4, Table 8)."""
import pytest
import torch
from tokenizers import Tokenizer as BPE
from tokenizers import models

from adapter import EOS_SLOPE, REPEAT_PENALTY, RULES, TOKEN_SHIFTS, Adapter, token_id
from data.format import encode_prompt
from generate import generate, generate_slowly

LLAMA2 = {  # Table 8's tokens as Llama-2 spells them
    "<": "<", " <": "▁<", "|": "|", " I": "▁I", "I": "I", " We": "▁We", "What": "What", " should": "▁should",
    " *": "▁*", " -": "▁-", "   ": "▁▁▁", " #": "▁#", " ##": "▁##", "\n": "<0x0A>", "!": "!",
}


class MadeUp:
    """A tokenizer with Llama-2's spellings, and ids that follow their order."""

    tokens = ["<unk>", "<s>", "</s>", *LLAMA2.values(), "a", "b"]
    bpe = BPE(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    eos_id = 2


def test_the_table_is_the_papers():
    assert len(TOKEN_SHIFTS) == 15 and EOS_SLOPE * 250 == 15 and REPEAT_PENALTY == 1.5
    assert sorted(TOKEN_SHIFTS.values()) == [-6, -5, -5, -5, -4, -4, -4, -3] + [1] * 7


def test_strings_are_found_in_sentencepiece_and_byte_level_spelling(tokenizer):
    assert {text: MadeUp.bpe.id_to_token(token_id(MadeUp.bpe, text)) for text in TOKEN_SHIFTS} == LLAMA2
    for text in TOKEN_SHIFTS:
        i = token_id(tokenizer.bpe, text)
        assert i is None or tokenizer.decode([i]) == text


def test_scores_by_hand():
    adapter = Adapter(MadeUp, 20)
    seen = torch.zeros(2, 20, dtype=torch.bool)
    seen[0, 6], seen[1, 18], seen[1, 2] = True, True, True  # " I"; "a" and EOS
    r = adapter.scores(seen, 100)
    first = [0, 0, 6, -4, -4, -4, -5 - 1.5, -5, -3, -5, -6, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    second = [0, 0, 6 - 1.5, -4, -4, -4, -5, -5, -3, -5, -6, 1, 1, 1, 1, 1, 1, 1, -1.5, 0]
    torch.testing.assert_close(r, torch.tensor([first, second]))
    assert adapter.scores(seen, 500)[0, 2] == 30  # the slope goes on past 250 tokens


@pytest.mark.parametrize("rule, weight", [
    ("eos", "eos_slope"), ("tokens", "token_shift"), ("repeats", "repeat_penalty"),
])
def test_switching_a_rule_off_is_giving_it_no_weight(rule, weight):
    seen = torch.rand(4, 20, generator=torch.Generator().manual_seed(0)) < 0.3
    without, weightless = Adapter(MadeUp, 20, [r for r in RULES if r != rule]), Adapter(MadeUp, 20)
    setattr(weightless, weight, getattr(weightless, weight) * 0)
    assert torch.equal(without.scores(seen, 33), weightless.scores(seen, 33))
    assert not torch.equal(without.scores(seen, 33), Adapter(MadeUp, 20).scores(seen, 33))


def test_an_absent_string_is_named_once(capsys):
    class Small(MadeUp):
        bpe = BPE(models.BPE({"<s>": 0, "I": 1, "</s>": 2}, []))

    assert Adapter(Small, 3).token_shift.tolist() == [0, -5, 0]
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "'What'" in error and "'I'" not in error


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="unknown rule 'luck'; the rules are eos, tokens, repeats"):
        Adapter(MadeUp, 20, ["eos", "luck"])


@torch.inference_mode()
def slow_greedy_with_rules(model, tokenizer, prompt, n, penalised=()):
    """The rules read off Table 8 one token at a time, with no cache and no tensors of their own."""
    shifts = {token_id(tokenizer.bpe, text): shift for text, shift in TOKEN_SHIFTS.items()}
    response = []
    while len(response) < n:
        scores = model(torch.tensor([prompt + response]))[0, -1].tolist()
        for i in range(len(scores)):
            ramp = 15 * len(response) / 250 if i == tokenizer.eos_id else 0
            scores[i] += shifts.get(i, 0) - 1.5 * (i in response or i in penalised) + ramp
        token = max(range(len(scores)), key=scores.__getitem__)
        if token == tokenizer.eos_id:
            break
        response.append(token)
    return response


@pytest.mark.parametrize("penalise_prompt", [False, True])
def test_decoding_with_rules_batched_equals_one_by_one_by_hand(small_model, tokenizer, penalise_prompt):
    adapter = Adapter(tokenizer, 1536, penalise_prompt=penalise_prompt)
    texts = ("Hi", "What is the capital of Brabrol?", "Write a poem about dust.", "Why?")
    prompts = [encode_prompt(tokenizer, text) for text in texts]
    by_hand = [slow_greedy_with_rules(small_model, tokenizer, prompt, 60, prompt if penalise_prompt else ())
               for prompt in prompts]
    assert generate(small_model, prompts, tokenizer.eos_id, 60, adapter=adapter) == by_hand
    assert by_hand != generate(small_model, prompts, tokenizer.eos_id, 60)
    other = Adapter(tokenizer, 1536, penalise_prompt=not penalise_prompt)
    assert by_hand != generate(small_model, prompts, tokenizer.eos_id, 60, adapter=other)
    assert by_hand[0] == generate_slowly(small_model, prompts[0], tokenizer.eos_id, 60, adapter)
