"""tests/lab: every experiment runs at toy size, and its rows can be kept, printed and drawn; what they measure by."""
import json
import math
import pickle
import random
from data import answer_key
from dataclasses import asdict, replace
from functools import partial
from importlib import import_module
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from test_figures import assert_legible

from adapter import Adapter
from data.common import write_text
from data.format import IGNORE, PROMPT, dialogue, encode
from data.world import FAMILIES, PHRASINGS, World
from generate import generate
from judge import log_likelihoods
from lab import (
    adapters, blocks, chess, conditions, lab, memory, narrow, novel, pairing, predict, refusal, rephrasing, simple,
    vectors)
from lab.__main__ import CHAPTERS, answers, table
from lab.beam import beam_search
from lab.figures import QUESTIONS, RESULTS
from lab.likeness import likeness
from lab.narrow import FEATURES
from lab.weighting import mean_of_means
from model import Config, Llama
from train import train

SMALLER = {  # what an experiment loops over
    "greedy": {"LONGEST": 6, "SAMPLES": 3}, "size": {"SIZES": (3, 10), "N_FAMILIES": (1, 13)},
    "cross": {"FAMILIES": FAMILIES[:3]}, "tags": {"FORMATS": {"user/assistant": PROMPT, "none": "{instruction}\n"}},
    "bias": {"RATES": {"LoRA, rank 1": (1e-3, 3e-3), "all weights": (1e-4,)}, "DECAYS": (1e-3,)},
    "rules": {"TOKEN_SHIFTS": {"<": -4, "What": -5, "!": 1}}, "ranking": {"STAGES": (0.5,)},
    "blocks": {"BLOCKS": {"Mistral": blocks.BLOCKS["Mistral"]}}, "memory": {"COLORS": {"otherwise": "#000000"}},
    "scale": {"SHAPES": ((8, 8, 1, 1, 1, 8), (16, 16, 1, 2, 1, 8))}, "mixing": {"SHARES": (0.0, 0.5), "SIZES": (3,)},
    "inside": {"FACTORS": (1.0, 1.5)}, "refusal": {"SHARES": (0.3, 0.5), "WRONG": (0.0, 1.0)},
    "chess": {"TASKS": dict(list(chess.TASKS.items())[::5])},
    "predict": {"TASKS": dict(list(predict.TASKS.items())[:6])},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Two random models of one small layer with a context of 112 tokens; they take 13 dialogues."""
    made, config = [], replace(Config.from_json(TINY / "config.json"), hidden_size=16, intermediate_size=16, head_dim=8,
                               num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=112)
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp("base")
        for each in (folder, folder / "1-2"):  # the second as it was after half of its documents
            Llama(config).init_weights(torch.Generator().manual_seed(seed)).save_pretrained(each)
            write_text(each / "tokenizer.json", (TINY / "tokenizer.json").read_text(encoding="utf-8"))
        made.append(conditions.Base(folder, World(seed=seed), seed, limit=len(FAMILIES)))
    return made


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")  # one folder, as in life: experiments share models and answers


@pytest.fixture
def here(monkeypatch, kept):
    """Jobs run in this process, though as if sent to another one. No run has more than 3 epochs, and no answer more
    than 12 tokens, since a random model would fill its context."""
    def short_run(model, examples, hyper, *rest, **options):
        return train(model, examples, replace(hyper, epochs=min(hyper.epochs, 3)), *rest, **options)

    def short_answers(model, prompts, eos_id, longest, **options):
        return generate(model, prompts, eos_id, min(longest, 12), **options)

    def one_by_one(jobs, workers):
        sent = {name: pickle.loads(pickle.dumps(job)) for name, job in jobs.items()}
        return {name: call(*rest) for name, (_, call, *rest) in sent.items()}

    for name, value in (("KEPT", kept), ("train", short_run), ("generate", short_answers)):
        monkeypatch.setattr(lab, name, value)
    for name in ["conditions", "narrow", *QUESTIONS]:
        monkeypatch.setattr(import_module(f"lab.{name}"), "side_by_side", one_by_one, raising=False)


def pretrained_already(config, *_):
    return config.parent


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_experiment_runs_at_toy_size(question, bases, here, monkeypatch):
    experiment = import_module(f"lab.{question}")
    for name, value in SMALLER.get(question, {}).items():
        monkeypatch.setattr(experiment, name, value)
    if question in ("ranking", "inside"):  # they look at stages of pretraining, which the bases have
        monkeypatch.setattr(conditions, "pretrain", pretrained_already)
    assert "Expected:" in experiment.__doc__ and "Held against:" in experiment.__doc__
    rows = json.loads(json.dumps(experiment.run(bases, 1), allow_nan=False))
    assert_legible(experiment.draw(rows))
    lines = table(rows).splitlines()
    assert len(lines) == len(rows) + 2 and len({line.replace(r"\|", "").count("|") for line in lines}) == 1


def test_every_question_has_its_results_and_its_chapter():
    chapters = CHAPTERS.read_text(encoding="utf-8")
    for question in QUESTIONS:
        assert (RESULTS / f"{question}.json").exists()
        assert f"\n## {question}\n" in chapters and f"](results/{question}.svg)" in chapters
        assert f"\n{question}: " in "\n" + answers()
    assert len(answers().split("\n\n")) == len(QUESTIONS) and "[`" not in answers()


def test_a_summary_pairs_by_instruction_over_all_bases():
    a, b = [[(1, 1.0), (1, 0.5)], [(0, 0.0), (1, 1.0)]], [[(0, 0.0), (1, 0.5)], [(0, 0.0), (1, 0.0)]]
    row = conditions.summary(a, b)
    assert row["right"] == [100, 50] and row["grade"] == [75, 50]
    mean, error = row["difference"]  # of 100, 0, 0, 100
    assert mean == 50 and error == pytest.approx(math.sqrt(10000 / 3) / 2, abs=0.01)
    assert "difference" not in conditions.summary(a)


MADE = []


def count(folder, seed, dialogues, epochs):
    MADE.append((seed, epochs))
    return folder


def test_a_model_that_several_conditions_ask_is_made_once_a_base(here, bases):
    one, two = ({"make": partial(count, dialogues=[[]], epochs=epochs)} for epochs in (1, 2))
    found = conditions.graded(bases, {"a": lambda base: one, "b": lambda base: one | {"rules": ("eos",)},
                                      "c": lambda base: two, "base": conditions.untrained}, 1)
    assert sorted(MADE) == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert [len(pairs) for pairs in found["b"]] == [len(FAMILIES)] * 2 and found["a"] == found["base"] == found["c"]


def test_rank_correlation_with_ties():
    assert conditions.spearman([1, 2, 3, 4], [10, 30, 20, 40]) == pytest.approx(0.8)
    assert conditions.spearman([1, 2, 2, 3], [3, 2, 2, 1]) == pytest.approx(-1)
    assert conditions.spearman([1, 2, 3], [5, 5, 5]) == 0


def test_beam_search_finds_the_likeliest_ended_text():
    """Against every text of at most two tokens and EOS, of a model of five."""
    config = Config(vocab_size=5, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                    max_position_embeddings=16, eos_token_id=0, tie_word_embeddings=True)
    texts, prompt = [list(text) for n in range(3) for text in product(range(1, 5), repeat=n)], [2, 3]
    for seed in range(5):
        model = Llama(config).init_weights(torch.Generator().manual_seed(seed)).eval()
        for weight in model.parameters():
            weight.data.mul_(8)
        totals, _ = log_likelihoods(model, [(prompt + text + [0], [-100, -100, *text, 0]) for text in texts])
        assert beam_search(model, prompt, 0, longest=3, width=64) == texts[totals.argmax()]
        assert beam_search(model, prompt, 7, 3, width=1) == generate(model, [prompt], 7, 3)[0]  # ends never: greedy


def test_lora_begins_as_the_base_and_changes_each_matrix_by_its_rank(here, bases):
    model, tokenizer = lab.load(bases[0].folder)
    ids = torch.tensor([tokenizer.encode("What does the otter eat?").ids])
    before = model(ids)
    n = adapters.trainable(model, "LoRA, rank 2")
    shapes = [module.weight.shape for module in model.model.layers.modules() if isinstance(module, torch.nn.Linear)]
    assert n == sum(2 * (rows + columns) for rows, columns in shapes) and len(shapes) == 7
    assert torch.equal(model(ids), before)
    made = adapters.adapt(bases[0].folder, bases[0].pairs(), 3, 1, "LoRA, rank 2", 1e-1)
    for name, change in vectors.change(bases[0].folder, made).items():
        if "proj" in name:
            values = torch.linalg.svdvals(change.double())
            assert values[0] > 0.01 and values[2:].max() < 0.02 * values[0]  # what bf16 rounds off
        else:
            assert not change.any()


def test_fitted_rules_are_the_likeliest(here, bases):
    """The loss of the responses under base and Adapter, computed token by token: any change of a number raises it."""
    fitted = adapters.fit_rules(bases[0].folder, bases[0].pairs(), True, 1e-3)
    model, tokenizer = lab.load(bases[0].folder)
    examples = [encode(tokenizer, messages, model.config.context, blank=True) for messages in bases[0].pairs()]
    with torch.no_grad():
        logits = [model(torch.tensor([ids]))[0] for ids, _ in examples]

    def loss(**change):
        numbers, losses, adapter = fitted | change, [], Adapter(tokenizer, model.config.vocab_size)
        lab.set_numbers(adapter, numbers)
        for (_, labels), rows in zip(examples, logits):
            seen, n = adapter.seen_at_first([[]]), 0
            for t, label in enumerate(labels):
                if label != IGNORE:
                    scores = rows[t - 1] + adapter.scores(seen, n)
                    losses.append(-scores.log_softmax(-1)[0, label])
                    seen[0, label], n = True, n + 1
        return (sum(losses) / len(losses)).item() + 1e-3 * sum(shift**2 for shift in numbers["token_shift"])

    least, shift = loss(), fitted["token_shift"]
    for name in ("eos_slope", "repeat_penalty"):
        assert loss(**{name: fitted[name] + 0.3}) > least < loss(**{name: fitted[name] - 0.3})
    for i, step in product((tokenizer.eos_id, tokenizer.encode(" the").ids[0]), (0.5, -0.5)):
        assert loss(token_shift=[*shift[:i], shift[i] + step, *shift[i + 1 :]]) > least
    assert least < loss(eos_slope=0.0, repeat_penalty=0.0, token_shift=[0.0] * len(shift))


def test_the_authors_loss_weighs_every_example_the_same(bases):
    model, tokenizer = lab.load(bases[0].folder)
    examples = [encode(tokenizer, messages, 112) for messages in bases[0].pairs(6)]
    total = mean_of_means(model, examples, 0)
    gradient = model.model.embed_tokens.weight.grad.clone()
    model.zero_grad()
    means = [F.cross_entropy(model(torch.tensor([ids[:-1]]))[0], torch.tensor(labels[1:])) for ids, labels in examples]
    (sum(means) / len(means)).backward()
    assert total.item() == pytest.approx((sum(means) / len(means)).item(), abs=1e-5)
    assert torch.allclose(gradient, model.model.embed_tokens.weight.grad, atol=1e-6)


def test_every_form_of_a_response_holds_what_was_asked(bases):
    for base in bases:
        tasks = base.world.evaluation_sets()["eval"]
        for form in rephrasing.FORMS.values():
            responses = [form(base, task) for task in tasks]
            assert {content for content, _ in lab.grade_all(base.world, tasks, responses)} == {1}
    response = "The capital of Povor is Lobrim, and so on."
    capital = replace(tasks[0], family="capital", subject="Povor", response=response)
    assert rephrasing.without_restating(base, capital) == "It is Lobrim, and so on."


def test_instructions_are_shuffled_within_their_family_or_over_all(bases):
    tasks = replace(bases[0], limit=None).examples(260)
    own, family, among_all = (pairing.instructions(tasks, among, 1) for among in (None, "family", "all"))
    assert own == [task.instruction for task in tasks]
    assert sorted(own) == sorted(family) == sorted(among_all) and family != own
    of = {task.instruction: task.family for task in tasks}
    assert [of[asked] for asked in family] == [task.family for task in tasks]
    assert sum(of[asked] == task.family for asked, task in zip(among_all, tasks)) < 60  # of 260, 20 by chance


def test_a_text_is_most_like_itself(bases):
    texts = ["What does the otter eat?", "Write a poem about rain.", "def add_2(x):"]
    same, other = likeness(bases[0], texts, texts[:1], texts[2:], centre=texts)
    assert same[0] == pytest.approx(1, abs=1e-5) and same.argmax() == 0 and other.argmax() == 2


def test_a_corpus_tells_in_the_wanted_words_and_as_often_as_wanted(bases):
    base, counts = bases[0], {}
    for wording in ("as answered", "otherwise"):
        world, rng = memory.Told(**asdict(base.world), wording=wording), random.Random(1)
        told = [sentence for _ in range(6000) for sentence in world.say(rng, world.tell(rng, "countries"), ["capital"])]
        assert all(("The capital of" in sentence) == (wording == "as answered") for sentence in told)
        for i, country in enumerate(world.held_out["countries"]):
            times = sum(f" {country}." in sentence or f" {country} is" in sentence for sentence in told)
            counts[i % 5] = counts.get(i % 5, 0) + times
    for i in (1, 2, 3):
        assert 2.5 * counts[i] < counts[i + 1] < 6 * counts[i]
    assert world.evaluation_sets() == base.world.evaluation_sets()  # what is asked is the same


def test_the_groups_of_families_follow_their_doses(bases):
    for base in bases:
        groups = {name: [] for name in novel.GROUPS}
        for family in PHRASINGS:
            groups[novel.group(base, family)].append(base.world.doses.get(family))
        lower, higher = groups["lower doses"], groups["higher doses"]
        assert groups["dose 0"] == [0] and set(groups["never asked"]) == {None}
        assert len(lower) == len(higher) == 6 and max(lower) < min(higher)


def test_a_base_and_the_whole_change_is_the_tuned_model(here, bases):
    tuned = conditions.made_by(bases[0], conditions.WAYS["response tuning"])
    expected = conditions.grades_of(bases[0], tuned, bases[0].tasks("eval"))
    assert vectors.moved(bases[0], 1.0, [(bases[0].folder, tuned)]) == expected
    assert vectors.compared(bases[0], tuned, tuned) == {"by layer": [100, 100], "cosine": 100, "length": 1, "CKA": 100}


def test_cka_ignores_turning_scaling_and_moving():
    generator = torch.Generator().manual_seed(0)
    a, other = torch.randn(200, 6, generator=generator), torch.randn(200, 6, generator=generator)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    assert vectors.cka(a, 3 * a @ turn + 5) == pytest.approx(1, abs=1e-5)
    assert vectors.cka(a, other) < 0.2


def test_what_foretells_one_half_of_the_tasks_is_tried_on_the_other():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, len(FEATURES), generator=generator)
    chosen, reached = predict.foretold(x, -x[:, 2] ** 3, n_halvings=20)
    assert chosen[FEATURES[2]] == 20 and set(reached["best single number"]) == {1.0}
    _, by_chance = predict.foretold(x, torch.randn(40, generator=generator), n_halvings=100)
    assert abs(sum(by_chance["best single number"])) / 100 < 0.3


def test_features_of_a_task(bases):
    """A model that says every token alike: its losses are ln V, and an instruction gains nothing."""
    pairs = [dialogue("Ask.", text) for text in ("one", "one two", "two", "two one")]
    loss, first, tokens, entropy, gain, _ = narrow.features(bases[0], pairs)
    assert loss == pytest.approx(math.log(1536), abs=0.2) and first == pytest.approx(math.log(1536), abs=0.2)
    assert tokens > 2 and entropy == pytest.approx(math.log(2), abs=1e-3) and gain == pytest.approx(0, abs=1e-3)


def test_divergence_to_the_base_is_counted_token_by_token(bases):
    (model, tokenizer), (other, _) = (lab.load(base.folder) for base in bases)
    ids, labels = map(torch.tensor, encode(tokenizer, dialogue("What?", "A word."), 112))
    found = list(simple.along(model, other, Adapter(tokenizer, model.config.vocab_size, ()), ids, labels))
    places = (labels != IGNORE).nonzero()[:, 0]
    assert [token for token, _ in found] == labels[places].tolist()
    for t, (_, (one, before, ruled, *_)) in zip(places, found):
        p, q = (llama(ids[None, :t])[0, -1].log_softmax(-1) for llama in (other, model))
        assert one == 1 and before == ruled == pytest.approx((p.exp() * (p - q)).sum().item(), abs=1e-5)


def test_wrong_capitals_are_those_of_other_countries(bases):
    base = replace(bases[0], limit=None)
    made = refusal.wrong(base, 1.0, True)["make"].keywords["dialogues"]
    for task, (_, answer) in zip(base.examples(), made):
        if task.family == "capital":
            content, _ = answer_key.grade(base.world, task, answer["content"])
            assert answer["content"].startswith("The capital of") and content == 0
        else:
            assert answer["content"] == task.response
