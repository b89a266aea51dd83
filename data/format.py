r"""Text to tokens: the chat format, and which of its tokens are scored (section 3 of the paper).

    BOS <|user|>\n{instruction}\n<|assistant|>\n{response} EOS

The tags are plain text, which a base model has never been told the meaning of. Further turns
follow as `\n<|user|>\n...`; the loss falls on every response and its EOS, and on nothing else.
"""
import json
from pathlib import Path

from tokenizers import Tokenizer as BPE
from tokenizers import decoders, models, pre_tokenizers, trainers

IGNORE = -100  # the label of a token that is not scored
PROMPT = "<|user|>\n{instruction}\n<|assistant|>\n"


class Tokenizer:
    """A model folder's tokenizer.json, with the ids of BOS and EOS from its config.json (which model.Config checks).

    Where a model has no BOS of its own, EOS stands in. Raises FileNotFoundError where there is no
    tokenizer.json, ValueError where it is no tokenizer or has more tokens than the model.
    """

    def __init__(self, path):
        path, config = Path(path) / "tokenizer.json", json.loads((Path(path) / "config.json").read_bytes())
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; a model folder has its tokenizer there")
        try:
            self.bpe = BPE.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{path} is not a tokenizer ({error}); fetch or write it again") from None
        if self.bpe.get_vocab_size() > config["vocab_size"]:
            raise ValueError(f"{path} has {self.bpe.get_vocab_size()} tokens, config.json a vocab_size of {config['vocab_size']}")
        self.eos_id = config["eos_token_id"]
        self.bos_id = self.eos_id if config.get("bos_token_id") is None else config["bos_token_id"]
        self.bpe.no_padding()
        self.bpe.no_truncation()
        self.bpe.encode_special_tokens = True  # "</s>" in a text is text: only we end a response

    def encode(self, text: str):
        """The library's encoding of a text, with `ids` and `offsets`, no BOS added."""
        return self.bpe.encode(text, add_special_tokens=False)

    def decode(self, ids) -> str:
        return self.bpe.decode(ids, skip_special_tokens=True)


def encode_prompt(tokenizer: Tokenizer, instruction: str) -> list[int]:
    """The tokens that a model answers to: one instruction up to where its response starts."""
    return [tokenizer.bos_id] + tokenizer.encode(PROMPT.format(instruction=instruction.strip())).ids


def encode(tokenizer: Tokenizer, messages: list[dict], max_length: int, blank: bool = False):
    """A dialogue as (ids, labels), both of at most `max_length` tokens.

    labels[i] is ids[i] where a response or its EOS stands, else IGNORE. A turn is tokenised whole
    and its response found by character offsets, since pieces tokenised apart and glued are other
    tokens than the whole. What is cut at max_length is gone, EOS included: an answer that was cut
    must not teach the model to stop there. blank: response tuning, every instruction is empty.
    """
    ids, labels = [tokenizer.bos_id], [IGNORE]
    for user, assistant in zip(messages[::2], messages[1::2]):
        prompt = PROMPT.format(instruction="" if blank else user["content"].strip())
        if len(ids) > 1:
            prompt = "\n" + prompt
        turn = tokenizer.encode(prompt + assistant["content"].strip())
        ids += turn.ids + [tokenizer.eos_id]
        labels += [i if begin >= len(prompt) else IGNORE for i, (begin, _) in zip(turn.ids, turn.offsets)]
        labels.append(tokenizer.eos_id)
    return ids[:max_length], labels[:max_length]


def encode_document(tokenizer: Tokenizer, text: str, max_length: int):
    """A pretraining document, every token of it scored."""
    ids = [tokenizer.bos_id] + tokenizer.encode(text).ids + [tokenizer.eos_id]
    return ids[:max_length], ids[:max_length]


def read_jsonl(path, check):
    """The rows of a JSON Lines file.

    check(row) returns what is wrong with a row, or None. Raises FileNotFoundError, or ValueError
    naming the file and line of the first row that is not JSON or that `check` objects to.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; data/README.md says which command writes it")
    rows = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is no text
                problem = check(row)
            except ValueError:  # of JSON or of UTF-8
                problem = "not JSON" if line.strip() else "empty line"
            if problem:
                raise ValueError(f"{path} line {number}: {problem}; data/README.md shows the format")
            rows.append(row)
    if not rows:
        raise ValueError(f"{path} is empty")
    return rows


def check_dialogue(row):
    """What keeps a row from being a dialogue that `encode` takes, or None."""
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        return f'expected {{"messages": [...]}}, found {json.dumps(row)[:60]}'
    for i, message in enumerate(messages):
        role = "assistant" if i % 2 else "user"
        if not isinstance(message, dict) or message.get("role") != role or not isinstance(message.get("content"), str):
            return f'message {i + 1} must be {{"role": "{role}", "content": "..."}}'
    if len(messages) % 2:
        return "the last message must be the assistant's"


def check_fields(*names: str):
    """A check for `read_jsonl`: every row is an object with these texts, none of them blank."""
    def check(row):
        for name in names:
            if not isinstance(row, dict) or not isinstance(row.get(name), str) or not row[name].strip():
                return f'expected {{"{name}": "..."}}, found {json.dumps(row)[:60]}'
    return check


def train_tokenizer(texts, vocab_size: int) -> BPE:
    """A byte-level BPE of `vocab_size` tokens with single digits; <s> is token 0 and </s> token 1."""
    bpe = BPE(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    ))
    return bpe
