"""Tokenizers of two kinds, trained on a few texts: for tests and for the assignments' cases."""
import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers


def byte_level(texts, size: int) -> Tokenizer:
    """As GPT-2's, but a merge may reach over the end of a line."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False, max_token_length=8))
    return bpe


def sentencepiece(texts, size: int = 600) -> Tokenizer:
    """As Llama-2's: "▁" for spaces and before every text, bytes for unknown characters."""
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bpe.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1)])
    special = [AddedToken(token, normalized=False, special=True) for token in ("<s>", "</s>", "<unk>")]
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=size, show_progress=False, max_token_length=8,
        special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)]))
    file = json.loads(bpe.to_str())
    del file["added_tokens"][len(special):]  # the trainer's only way to have bytes in the vocabulary
    return Tokenizer.from_str(json.dumps(file))
