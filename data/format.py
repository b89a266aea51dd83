r"""Text to tokens: the chat format, and which of its tokens are scored (section 3 of the paper).

    BOS <|user|>\n{instruction}\n<|assistant|>\n{response} EOS

    python data/format.py                                              # the two ways to train, token by token
    python data/format.py --model DIR "Name a river." "The Rhine."     # with another tokenizer and other words

The tags are plain text. Further turns follow as `\n<|user|>\n...`; the loss falls on every response and its EOS.
"""
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer as BPE
from tokenizers import decoders, models, pre_tokenizers, trainers

sys.path.insert(0, str(Path(__file__).parent.parent))
from data import common
from data.common import read_json

IGNORE = -100  # the label of a token that is not scored
IDS = {  # what transformers takes if a config.json does not name these, by its model_type
    "llama": {"vocab_size": 32000, "bos_token_id": 1, "eos_token_id": 2},
    "mistral": {"vocab_size": 32000, "bos_token_id": 1, "eos_token_id": 2},
    "olmo": {"vocab_size": 50304, "bos_token_id": None, "eos_token_id": 50279}}
PROMPT = "<|user|>\n{instruction}\n<|assistant|>\n"
TEMPLATE = r"""
{{ bos_token }}{% for message in messages %}
{%- set parts = message['content'] %}
{%- set content = (parts if parts is string else parts | map(attribute='text') | join) | trim %}
{%- if message['role'] == 'user' %}{{ '' if loop.first else '\n' }}{{ BEFORE }}{{ content }}
{%- elif message['role'] == 'assistant' %}{{ AFTER }}{{ content }}{{ eos_token }}
{%- else %}{{ raise_exception('the roles are user and assistant') }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ AFTER }}{% endif %}
""".strip()


def encode(tokenizer, messages: list[dict], max_length: int, blank: bool = False, prompt: str = PROMPT):
    """A dialogue as (ids, labels), two lists of at most `max_length` tokens. labels[i] is ids[i] or IGNORE.

    messages: user and assistant in turn, as `check_dialogue` wants them; white space around each content is dropped.
    blank: response tuning, every instruction is empty. prompt: the format, with {instruction} in it.

    ids begins with BOS, where the model has one. Then each pair of messages adds the tokens of one text: the prompt
    with the instruction filled in, and the response; from the second pair on a newline comes first. It is tokenised as
    a whole: with many tokenizers merges reach across the seam between prompt and response. EOS ends each pair. Scored
    are the tokens whose first character (see the offsets of `Tokenizer.encode`) lies in a response, and the EOS after
    each. The cut at max_length comes last and adds no EOS: a response that was cut must not teach the model to stop.
    """
    ids, labels = list(tokenizer.start), [IGNORE] * len(tokenizer.start)
    for n, (user, assistant) in enumerate(zip(messages[::2], messages[1::2])):
        asked = ("\n" if n else "") + prompt.replace("{instruction}", "" if blank else user["content"].strip())
        turn = tokenizer.encode(asked + assistant["content"].strip())
        ids += turn.ids + [tokenizer.eos_id]
        labels += [i if begin >= len(asked) else IGNORE for i, (begin, _) in zip(turn.ids, turn.offsets)]
        labels.append(tokenizer.eos_id)
    return ids[:max_length], labels[:max_length]


def encode_prompt(tokenizer, instruction: str, prompt: str = PROMPT) -> list[int]:
    """The tokens that a model answers to: BOS, where it has one, and one instruction up to its response."""
    return tokenizer.start + tokenizer.encode(prompt.replace("{instruction}", instruction.strip())).ids


def encode_document(tokenizer, text: str, max_length: int):
    """A pretraining document as (ids, labels), every token of it scored: BOS, where the model has one, text, EOS."""
    ids = tokenizer.start + tokenizer.encode(text).ids + [tokenizer.eos_id]
    return ids[:max_length], ids[:max_length]


def chat_template(prompt: str = PROMPT) -> str:
    """The format as Jinja, for transformers, vLLM and llama.cpp. A message's content is a text or a list of parts."""
    before, _, after = (json.dumps(part, ensure_ascii=False) for part in prompt.partition("{instruction}"))
    return TEMPLATE.replace("BEFORE", before).replace("AFTER", after)


def check_template(tokenizer):
    """Raise ValueError if tools that tokenise a whole rendered dialogue get other tokens than `encode` gives."""
    bpe = BPE.from_str(tokenizer.bpe.to_str())
    bpe.add_special_tokens([text for text in (tokenizer.bos, tokenizer.eos) if text])
    turn = f"{PROMPT.replace('{instruction}', 'One?')}Two.{tokenizer.eos}"
    theirs = bpe.encode(f"{tokenizer.bos or ''}{turn}\n{turn}", add_special_tokens=False).ids
    if theirs != encode(tokenizer, [{"content": "One?"}, {"content": "Two."}] * 2, 10**6)[0]:
        raise ValueError(f"{tokenizer.path}: other tools would split the chat format into other tokens than train.py "
                         "does; check its special tokens, and bos_token_id and eos_token_id in config.json")


def set_apart(part: dict) -> dict:
    """Change a part of a tokenizer.json, for json.loads: a text gets the same tokens behind BOS or EOS as alone."""
    if part.get("special") is True:
        part |= dict.fromkeys(("normalized", "lstrip", "rstrip", "single_word"), False)
        part["special"] = part["content"] not in "\n" + PROMPT  # a tag of ours is text, which we do not skip
    if part.get("prepend_scheme") == "first":
        part["prepend_scheme"] = "always"
    return part


class Tokenizer:
    """A model folder's tokenizer.json, with the ids of BOS and EOS from its config.json. Raises FileNotFoundError, or
    ValueError for a file that is no tokenizer or has ids beyond the model's.

    bos_id is None where the model has no BOS; start is what every sequence begins with, [bos_id] or []. A response ends
    at any of eos_ids; in training it ends with eos_id, the first. bos and eos are the texts of bos_id and eos_id."""

    def __init__(self, path):
        self.path = Path(path) / "tokenizer.json"
        config = read_json(Path(path) / "config.json", "a model folder has its configuration there")
        config = IDS.get(str(config.get("model_type")), {}) | config
        if not {"vocab_size", "eos_token_id"} <= config.keys():
            raise ValueError(f"{Path(path) / 'config.json'} has no vocab_size or no eos_token_id; add them")
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path} does not exist; a model folder has its tokenizer there")
        try:
            self.bpe = BPE.from_str(json.dumps(json.loads(self.path.read_bytes(), object_hook=set_apart)))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{self.path} is not a tokenizer ({error}); fetch or write it again") from None
        last = max(self.bpe.get_vocab().values(), default=-1)
        if last >= config["vocab_size"]:
            raise ValueError(f"{self.path} has the id {last}, config.json a vocab_size of {config['vocab_size']}")
        self.bos_id, self.eos_ids = config.get("bos_token_id"), listed(config["eos_token_id"])
        self.eos_id = self.eos_ids[0]
        self.start = [] if self.bos_id is None else [self.bos_id]
        self.bos = self.bpe.id_to_token(self.bos_id) if self.start else None
        self.eos = self.bpe.id_to_token(self.eos_id)
        self.bpe.no_padding()
        self.bpe.no_truncation()
        self.bpe.encode_special_tokens = True  # "</s>" in a text is text: only we end a response

    def encode(self, text: str):
        """The library's encoding of a text, with `ids` and `offsets` [(first character, end), ...], no BOS added."""
        return self.bpe.encode(text, add_special_tokens=False)

    def decode(self, ids) -> str:
        return self.bpe.decode(ids, skip_special_tokens=True)


def listed(ids: int | list[int]) -> list[int]:  # config.json's eos_token_id is one id, or several
    return ids if isinstance(ids, list) else [ids]


def dialogue(*texts: str) -> list[dict]:
    """Messages from texts: an instruction, its response, and so on in turn."""
    roles = ("user", "assistant") * len(texts)
    return [{"role": role, "content": text} for role, text in zip(roles, texts)]


def check_dialogue(row):
    """The reason why a row is no dialogue that `encode` takes, or None."""
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        return f'expected {{"messages": [...]}}, found {json.dumps(row)[:60]}'
    for i, message in enumerate(messages):
        role = "assistant" if i % 2 else "user"
        if not isinstance(message, dict) or message.get("role") != role or not isinstance(message.get("content"), str):
            return f'message {i + 1} must be {{"role": "{role}", "content": "..."}}'
    if len(messages) % 2:
        return "the last message must be the assistant's"


def train_tokenizer(texts, vocab_size: int) -> BPE:
    """A byte-level BPE of `vocab_size` tokens; <s> is token 0 and </s> token 1. A frequent number is one token: with
    single digits a small model did not learn sums."""
    bpe = BPE(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<s>", "</s>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(texts, trainer)
    return bpe


def print_tokens(tokenizer: Tokenizer, ids: list[int], labels: list[int]):
    """Print what each token adds to the text, with dots between: the scored ones in color or, in a file, [brackets]."""
    left, right = ("\033[1;30;42m", "\033[0m") if sys.stdout.isatty() else ("[", "]")
    shown, before = [], ""
    for n, label in enumerate(labels, 1):
        whole = tokenizer.bpe.decode(ids[:n], skip_special_tokens=False)
        if whole.endswith("\ufffd") and n < len(ids):  # a part of a character
            whole = before
        text = whole[len(before):].replace("\n", "\\n\n")
        shown.append(text if label == IGNORE else f"{left}{text}{right}")
        before = whole
    print("·".join(shown))


def main():
    parser = common.parser(__doc__)
    parser.add_argument("--model", default="data/tiny", help="a model's folder, for its tokenizer")
    parser.add_argument("instruction", nargs="?", default="What is the capital of Brabrol?", type=common.text)
    parser.add_argument("response", nargs="?", default="The capital of Brabrol is Miroz.", type=common.text)
    args = parser.parse_args()
    tokenizer, messages = Tokenizer(args.model), dialogue(args.instruction, args.response)
    for name, blank in (("Instruction tuning", False), ("Response tuning", True)):
        ids, labels = encode(tokenizer, messages, 10**6, blank)
        n_scored = sum(label != IGNORE for label in labels)
        print(f"{name}: the model reads {len(ids)} tokens, and the loss falls on {n_scored}.\n")
        print_tokens(tokenizer, ids, labels)
        print()


if __name__ == "__main__":
    common.run(main)
