"""The vocabularies of the published models, from packages of PyPI and npm that carry them, as fast tokenizers.

The packages are downloaded once by pip and npm. One data file of each is read, known by its SHA-256, and kept in the
user's cache (or the folder VLMHELPERS_VOCABULARIES); no code of theirs is imported or executed.
"""

import base64
import hashlib
import os
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter, bytes_to_unicode

from vlmhelpers.common.files import atomic_file, temporary_folder, user_cache

CACHE = Path(os.environ.get("VLMHELPERS_VOCABULARIES") or user_cache() / "vocabularies")
PIP = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
MOST_SECONDS = 180  # a registry that answers no sooner is out of reach


class Source(NamedTuple):
    """A data file in a package: the command that downloads that, the file's place in it, and its SHA-256."""

    download: list[str]
    member: str
    sha256: str


SOURCES = {
    "qwen": Source(
        [*PIP, "dashscope==2.0.2"],
        "dashscope/resources/qwen.tiktoken",
        "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186",
    ),
    "llama-3": Source(
        [*PIP, "llama_models==0.3.0"],
        "llama_models/llama3/tokenizer.model",
        "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55",
    ),
    "llama-2": Source(  # the data stand as text in the program, which is not run
        ["npm", "pack", "--silent", "llama-tokenizer-js@1.2.2"],
        "package/llama-tokenizer.js",
        "34a7b9f7579d40486444590c37cba6564ef40c3dd98ecdfc2f7c886ae72c898d",
    ),
}


class OutOfReach(Exception):
    """A registry does not answer, or its client is not installed."""


def data_file(name: str) -> bytes:
    """The data of `SOURCES[name]`. Raises OutOfReach without registry, ValueError where it has another file."""
    source, kept = SOURCES[name], CACHE / name
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / f"{name}.lock"):
        if not kept.is_file() or hashlib.sha256(kept.read_bytes()).hexdigest() != source.sha256:
            data = _download(source)
            if hashlib.sha256(data).hexdigest() != source.sha256:
                raise ValueError(f"{source.member} of {source.download[-1]} is not the file that was published")
            with atomic_file(kept, "wb") as file:
                file.write(data)
    return kept.read_bytes()


def _download(source):
    with temporary_folder() as folder:
        try:
            subprocess.run(source.download, cwd=folder, check=True, capture_output=True, timeout=MOST_SECONDS)
        except (OSError, subprocess.SubprocessError) as error:
            said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
            why = said[-1] if said else str(error)
            raise OutOfReach(f"{source.download[-1]} cannot be downloaded: {why}") from error
        (package,) = Path(folder).iterdir()
        if package.suffix == ".whl":
            with zipfile.ZipFile(package) as archive:
                return archive.read(source.member)
        with tarfile.open(package) as archive:
            return archive.extractfile(source.member).read()


# Qwen2.5 and Qwen3: ids 151643 to 151668; those from <tool_call> on are no control tokens.

QWEN_CONTROL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
QWEN2_TEXT = [
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>",
]  # fmt: skip
QWEN3_TEXT = [*QWEN2_TEXT, "<tool_response>", "</tool_response>", "<think>", "</think>"]


@cache
def _qwen_merges():
    """(vocabulary, merges) of Qwen, as its vocab.json and merges.txt have them."""
    ranks = _ranks(data_file("qwen"))
    merges = [_last_merge(ranks, token, rank) for token, rank in ranks.items() if len(token) > 1]
    return {_printable(token): rank for token, rank in ranks.items()}, [tuple(map(_printable, pair)) for pair in merges]


def qwen(text_tokens: list[str]) -> Qwen2Tokenizer:
    """The tokenizer of Qwen2.5-VL (with QWEN2_TEXT) and of Qwen3-VL (with QWEN3_TEXT)."""
    vocabulary, merges = _qwen_merges()
    words = [(word, True) for word in QWEN_CONTROL] + [(word, False) for word in text_tokens]
    added = {
        len(vocabulary) + i: AddedToken(word, normalized=False, special=special)
        for i, (word, special) in enumerate(words)
    }
    return Qwen2Tokenizer(
        vocabulary,
        merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        added_tokens_decoder=added,
        model_max_length=131072,
    )


# Llama 3.2 Vision: 256 control tokens from 128000 on, and <|image|>.

_LLAMA_NAMED = {
    0: "<|begin_of_text|>", 1: "<|end_of_text|>", 4: "<|finetune_right_pad_id|>", 6: "<|start_header_id|>",
    7: "<|end_header_id|>", 8: "<|eom_id|>", 9: "<|eot_id|>", 10: "<|python_tag|>",
}  # fmt: skip


class _Llama(TikTokenConverter):
    """transformers' converter, without the package tiktoken."""

    @staticmethod
    def load_tiktoken_bpe(data):
        return _ranks(data)


def llama() -> PreTrainedTokenizerFast:
    """The tokenizer of Llama 3.2 Vision."""
    reserved = iter(range(248))
    control = [_LLAMA_NAMED.get(i) or f"<|reserved_special_token_{next(reserved)}|>" for i in range(256)]
    converted = _Llama(data_file("llama-3"), extra_special_tokens=[*control, "<|image|>"]).converted()
    bos = "<|begin_of_text|>"
    begins = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, 128000)]
    )
    converted.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begins])
    return PreTrainedTokenizerFast(
        tokenizer_object=converted,
        bos_token=bos,
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
        clean_up_tokenization_spaces=True,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=131072,
    )


# Phi-3-Vision: Llama 2's 32,000 and 45 more; some of them swallow the blanks that follow.

_PHI_NAMED = {0: "<|endoftext|>", 1: "<|assistant|>", 6: "<|system|>", 7: "<|end|>", 10: "<|user|>", 44: "<|image|>"}
_PHI_KEEP = ("<|endoftext|>", "<|system|>", "<|end|>", "<|user|>")


def phi() -> PreTrainedTokenizerFast:
    """The tokenizer of Phi-3-Vision."""
    program = data_file("llama-2").decode()
    words, pairs = (
        base64.b64decode(re.search(rf'^const llama_{name} = "([A-Za-z0-9+/=]+)";?$', program, re.MULTILINE)[1])
        for name in ("vocab_base64", "merges_binary")
    )
    words = words.decode().split("\n")
    numbers = struct.unpack(f"<{len(pairs) // 2}H", pairs)
    merges = [(words[first], words[second]) for first, second in zip(numbers[::2], numbers[1::2], strict=True)]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    ends = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(ends)
    numbers = iter(range(1, 40))
    added = [_PHI_NAMED.get(i) or f"<|placeholder{next(numbers)}|>" for i in range(45)]
    tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in ("<unk>", "<s>")])
    tokenizer.add_tokens([AddedToken("</s>", normalized=False, rstrip=True, special=False)])
    tokenizer.add_special_tokens(
        [AddedToken(word, normalized=False, rstrip=word not in _PHI_KEEP, special=True) for word in added]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
        model_max_length=131072,
    )


BUILDERS = {
    "qwen2.5-vl": lambda: qwen(QWEN2_TEXT),
    "qwen3-vl": lambda: qwen(QWEN3_TEXT),
    "llama-3.2-vision": llama,
    "phi-3-vision": phi,
}
DATA = {"qwen2.5-vl": "qwen", "qwen3-vl": "qwen", "llama-3.2-vision": "llama-3", "phi-3-vision": "llama-2"}


def _ranks(data):
    """bytes of a token -> its rank, of a file in tiktoken's form: a token in base64 and its rank in each line."""
    lines = (line.split() for line in data.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def _last_merge(ranks, token, rank):
    """The two parts that `token` is made of, by the merges that come before its own."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(first + second, rank) for first, second in zip(parts, parts[1:], strict=False)]
        i = min(range(len(pairs)), key=pairs.__getitem__)
        if pairs[i] >= rank:
            raise ValueError(f"no merges lead to {token}")
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


_LETTERS = bytes_to_unicode()


def _printable(token):
    return "".join(_LETTERS[byte] for byte in token)
