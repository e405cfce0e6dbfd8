"""Tokenizers of the kinds that the families have, with vocabularies that are trained here on a few words.

Each kind is trained once per process; a family adds its special tokens, at the end as published tokenizers do.
"""

import functools
import json
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GemmaTokenizer, LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

_WORDS = (
    "What color is the bag ? Describe this picture . red blue green plain small price of a shirt hat mug : $20 "
    "system user assistant model You are helpful Answer briefly in words striped dotted umbrella boot dress scarf"
).split()
_BYTE_LEVEL_SIZE = 420
_SENTENCEPIECE_SIZE = 640  # 256 of them are the bytes

# GPT-2's own pattern would part a blank line from the word after it; the newer vocabularies all have one like this.
_PIECES = Regex(PRETOKENIZE_REGEX)


def byte_level(specials, named=None, **names):
    """A byte-level BPE, as of Llama 3, LFM2, GLM, Mistral and Kimi.

    `specials` are tokens without a name, `named` those that the tokenizer knows by one of the model's (`image_token`),
    `names` those of every tokenizer (`eos_token`).
    """
    vocabulary, merges = _byte_level()
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer, tokenizer.decoder = _bytes_of_pieces(), decoders.ByteLevel()
    tokenizer.add_special_tokens(_added(specials, named, names))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **_settings(specials, named, names))


def qwen(specials, named=None, **names):
    """The byte-level BPE of Qwen's tokenizers, which write decomposed letters as one; arguments as `byte_level`."""
    return _of_class(Qwen2Tokenizer, _byte_level(), specials, named, names)


def gemma(specials, named=None, **names):
    """A SentencePiece vocabulary without a space before the first word, as Gemma's; arguments as `byte_level`."""
    return _of_class(GemmaTokenizer, _sentencepiece("<pad>", "<eos>", "<bos>", "<unk>"), specials, named, names)


def llama(specials, named=None, **names):
    """A SentencePiece vocabulary, as Llama 2's: it writes a space before a text, and after each special token."""
    found = _sentencepiece("<unk>", "<s>", "</s>")
    return _of_class(functools.partial(LlamaTokenizer, legacy=True, padding_side="left"), found, specials, named, names)


def _of_class(kind, found, specials, named, names):
    vocabulary, merges = found
    tokenizer = kind(vocab=vocabulary, merges=merges, **_settings(specials, named, names))
    tokenizer.add_tokens(_added(specials, named, names), special_tokens=True)
    return tokenizer


def _every(specials, named, names):
    return list(dict.fromkeys([*specials, *(named or {}).values(), *names.values()]))


def _added(*tokens):
    return [AddedToken(token, normalized=False, special=True) for token in _every(*tokens)]


def _settings(specials, named, names):
    every = _every(specials, named, names)
    return {"extra_special_tokens": every, "model_specific_special_tokens": named or {}, **names}


def _bytes_of_pieces():
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_PIECES, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


@functools.cache
def _byte_level():
    """(vocabulary, merges) of bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _bytes_of_pieces()
    return _train(tokenizer, _BYTE_LEVEL_SIZE, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))


@functools.cache
def _sentencepiece(*control):
    """(vocabulary, merges) of characters, where what has no piece is written in bytes; `control` tokens come first."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    words = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.Split(Regex("\n+"), "isolated")])
    return _train(tokenizer, _SENTENCEPIECE_SIZE, special_tokens=[*control, *(f"<0x{i:02X}>" for i in range(256))])


def _train(tokenizer, size, **options):
    rng = random.Random(0)
    ends = ("\n", "\n\n", ".")
    texts = [" ".join(rng.choices(_WORDS, k=8)) + rng.choice(ends) for _ in range(400)]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, show_progress=False, **options))
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]
