"""Where the answers stand: first in the text that a chat template writes, then among the tokens of a batch.

The template is asked twice per answer: for the prompt that the model gets at that point (training starts where
inference starts), and for the conversation with a marker in place of the answer (what follows is the end of the turn).
That also holds for templates that trim an answer or put a `<think>` block before it. An answer that a template shows
otherwise than the model has to write it, as those for thinking models do with earlier turns, is refused.
"""

import logging
import re
from contextlib import suppress
from functools import cached_property
from itertools import compress, count
from typing import NamedTuple

import torch

from vlmhelpers.batches.conversation import without_blank_lines
from vlmhelpers.common.printable import shortened
from vlmhelpers.data.schema import TRAIN, learned_turns, message_text, text_part, unescape_control_tokens
from vlmhelpers.data.turns import THINK_TAGS, split_thinking
from vlmhelpers.families import family_of

IGNORED = -100  # the label that PyTorch's cross entropy leaves out of the loss
_MARKER = "\ue000the answer\ue001"  # private-use characters, and none of its ends is a beginning of it
_ONE_BY_ONE = 'pass train_on="last"; to learn every answer, apply one_answer_per_row(dataset) first, too'
# What is wrong with an answer, and what helps where it is the last one.
_ONE_BLOCK = "write one <think>...</think> block at its start, or none"
_NO_REASONING = "loses its reasoning in the chat template", _ONE_BLOCK
_LESS_TEXT = "loses text in the chat template", _ONE_BLOCK
_TWICE = "gets a second <think> block from the chat template", "leave its own out"
_NO_PROMPT = (
    "is not written after the prompt that the model gets there",
    "the chat template is not made for training, so give the processor another chat_template",
)
_OTHER_WORDS = "write the row in other words, or leave it out"
_TEMPLATE = "give the processor another chat_template"
_LOST = {
    "system": "the chat template leaves the system turn out",
    "user": "the chat template does not write the text of content parts (is it for text alone?)",
}
# SmolVLM's processor hands arguments on to a template that has none of that name, and transformers warns of each text.
logging.getLogger("transformers.processing_utils").addFilter(lambda record: "`processor_kwargs`" not in record.msg)


class Refused(ValueError):
    """A conversation that cannot be trained on with a processor; `args` are the reason and the remedy."""

    def __str__(self):
        return ". Remedy: ".join(self.args)


class ChatTemplate:
    """The chat template and the (fast) tokenizer of one processor.

    The processor may write whatever it needs in place of an image of the text; `image_ids` are the tokens that it has
    written so far. What stands between the images has to reach its tokenizer as it is.
    """

    def __init__(self, processor):
        self.processor = processor
        self.tokenizer = tokenizer = processor.tokenizer
        family = family_of(processor)
        template = family.trainable_template(processor)
        own = getattr(processor, "chat_template", None)
        self._repaired = {"chat_template": template} if template and template != own else {}
        self.control_tokens, image = _control_tokens(processor, family), family.image_pattern(processor)
        longest_first = sorted(self.control_tokens, key=len, reverse=True)  # as the tokenizer finds them
        self.control = re.compile("|".join([image, *map(re.escape, longest_first)]))
        self.control_ids = {*tokenizer.convert_tokens_to_ids(longest_first)}
        self._steering = torch.tensor([*self.control_ids], dtype=torch.long)
        self.image_ids = set()
        self._image = re.compile(image)
        self._begins = {tokenizer.bos_token_id} - {tokenizer.eos_token_id, None}
        self._added = {*tokenizer.added_tokens_decoder} - self._begins

    def text(self, messages, prompt=False):
        """The conversation as text, one placeholder per image; `prompt` adds the header of the next answer."""
        text = self._written(messages, prompt)
        if role := _left_out(messages, text):
            raise Refused(_LOST[role], self._remedy(messages))
        return text

    def _written(self, messages, prompt=False):
        """As `text`, of turns that need not be looked for in it: they are compared with a text where they were."""
        system = any(message["role"] == "system" for message in messages)
        try:
            return self._render(messages, prompt, system and self._system_in_parts)
        except MemoryError:
            raise
        except Exception as error:  # a template is a program of others, which may also be one for plain strings
            reason = f"the chat template refuses the conversation: {error}".rstrip(".")
            raise Refused(reason, self._remedy(messages, prompt)) from error

    def _render(self, messages, prompt=False, system_in_parts=False):
        if system_in_parts:
            messages = [m | {"content": [text_part(m["content"])]} if m["role"] == "system" else m for m in messages]
        options = {"tokenize": False, "add_generation_prompt": prompt} | self._repaired
        return self.processor.apply_chat_template(messages, **options)

    @cached_property
    def _system_in_parts(self):
        """Whether the template shows a system turn only where it is a list of parts: some refuse or lose a string."""
        turns = [{"role": "system", "content": _MARKER}, {"role": "user", "content": [text_part("?")]}]
        for in_parts in (False, True):
            with suppress(Exception):
                if _MARKER in self._render(turns, system_in_parts=in_parts):
                    return in_parts
        return False

    @cached_property
    def end_id(self) -> int | None:
        """The token that ends an answer, or the first of it; None where the template writes none."""
        turns = [{"role": role, "content": [text_part(_MARKER)]} for role in ("user", "assistant")]
        with suppress(Refused):
            tail = self.text(turns).rpartition(_MARKER)[2]
            return self.tokenizer.convert_tokens_to_ids(self._end_token(tail.lstrip()))

    def _remedy(self, messages, prompt=False):
        others = [message for message in messages if message["role"] != "system"]
        if len(others) < len(messages):
            with suppress(Refused):
                self.text(others, prompt)
                return "put the text of its system turn at the beginning of its first user turn"
        return "write its turns as the template takes them, or give the processor another chat_template"

    def to_train(self, messages, train_on="assistant"):
        """(text, spans): the conversation as text for training, and where the model learns, in characters.

        A span goes from the first character that the model has to write to the end of the end token, of the turns that
        `train_on` names, but for those that are not to be learned. Where a prompt ends with a line break, blank lines
        at the start of the last answer (as in an empty `<think>` block) are left out: a tokenizer may join them, and no
        prompt ends inside a token. Raises Refused for a turn whose reasoning is left out, that follows another text
        than the prompt, or is not found.
        """
        text = self.text(messages)
        turns = learned_turns(messages)
        if train_on == "last":
            turns = turns[-1:]
        *spans, (start, end) = [self._answer(messages, text, turn) for turn in turns]
        breaks = text[:start].endswith("\n")
        shorter = text[:start] + without_blank_lines(text[start:]) if breaks else text
        spans.append((start, end - len(text) + len(shorter)))
        return shorter, self._all_but_unlearned(messages, text, len(shorter)) if train_on == "all" else spans

    def _all_but_unlearned(self, messages, text, length):
        """The spans between the turns that are marked as not to be learned, of a text of `length`."""
        unlearned = [turn for turn, message in enumerate(messages) if message.get(TRAIN) is False]
        left_out = [index for turn in unlearned for index in self._place(messages, text, turn)]
        borders = [0, *left_out, length]
        return [*zip(borders[::2], borders[1::2], strict=True)]

    def _place(self, messages, text, turn):
        """(start, end) of an assistant turn in `text` that need not be written whole, with its end token, if any."""
        head, tail = self._around(messages, text, turn)
        start = self._start(messages, text, turn, head) if turn else None
        stop = len(text) - len(tail)
        with suppress(Refused):
            stop += self._end_of_turn(tail)
        return len(head) if start is None else start, stop

    def _answer(self, messages, text, turn):
        """(start, end) of one assistant turn in `text`, which is `self.text(messages)`."""
        head, tail = self._around(messages, text, turn)
        start, stop = self._start(messages, text, turn, head), len(text) - len(tail)
        written = text[len(head) if start is None else start : stop]
        if problem := _lost(message_text(messages[turn]), written) or (_NO_PROMPT if start is None else None):
            earlier = any(message["role"] == "assistant" for message in messages[turn + 1 :])
            raise Refused(f"the answer of turn {turn + 1} {problem[0]}", _ONE_BY_ONE if earlier else problem[1])
        return start, stop + self._end_of_turn(tail)

    def _around(self, messages, text, turn):
        """What the template writes before and after the text of an assistant turn of `messages`, whose text is `text`.

        A marker takes the place of the answer: one that no text of the row has.
        """
        marker = next(m for m in (_MARKER.replace("r\ue001", f"r{n}\ue001") for n in count()) if m not in text)
        marked = {"role": "assistant", "content": [text_part(marker)]}
        head, found, tail = self._written([*messages[:turn], marked, *messages[turn + 1 :]]).partition(marker)
        if not found:
            raise Refused(_LOST["user"], _TEMPLATE)
        if not text.endswith(tail):
            reason = f"the chat template leaves no way to tell where the answer of turn {turn + 1} stands"
            raise Refused(reason, _TEMPLATE)
        return head, tail

    def _start(self, messages, text, turn, head):
        """Where the prompt of `turn` ends in `text`; None where `text` has something else there.

        The prompt may begin otherwise (with a date): then its end must stand in `head`, the text up to the answer.
        """
        prompt = self._written(messages[:turn], prompt=True)
        if text.startswith(prompt):
            return len(prompt)
        header = prompt.removeprefix(self._written(messages[:turn]))
        start = head.rfind(header) + len(header)
        found = header in head and text.startswith(head[:start])
        return start if found and not any(token in head[start:] for token in self.control_tokens) else None

    def _end_of_turn(self, tail):
        """Length of the end token at the start of `tail`, with the whitespace before it."""
        blank = len(tail) - len(tail.lstrip())
        return blank + len(self._end_token(tail[blank:]))

    def _end_token(self, tail):
        ends = [token for token in self.control_tokens if tail.startswith(token)]
        if not ends:
            raise Refused("the chat template writes no end token after an answer, to learn to stop", _ONE_BY_ONE)
        return max(ends, key=len)

    def decode(self, ids: list[int]) -> str:
        """The text of generated tokens without those that steer the conversation; tokens of one's own stay."""
        ids = [token for token in ids if token not in self.control_ids]
        return self.tokenizer.decode(ids, skip_special_tokens=False).strip()

    def answer(self, ids: list[int]) -> str:
        """As `decode`, with what was escaped before it was learned as it was written."""
        return unescape_control_tokens(self.decode(ids), self.control)

    def labels(self, text: str, spans: list[tuple[int, int]], read: "Read") -> torch.Tensor:
        """The labels (t,) of what the tokenizer read: its ids inside the `spans` of `text`, IGNORED elsewhere.

        Raises Refused where the processor has changed `text` between its images, where the prompt alone has other
        tokens than in front of its answer, and where there are `spans` without a token.
        """
        pieces, first = self._pieces(text, read.text), torch.tensor(read.starts)
        inside = torch.zeros(len(first), dtype=torch.bool)
        learned = inside.clone()
        for start, stop, shift in pieces:
            inside |= (start + shift <= first) & (first < stop + shift)
            for begin, end in spans:
                learned |= (max(begin, start) + shift <= first) & (first < min(end, stop) + shift)
        ids = torch.tensor(read.ids)
        steers = torch.isin(ids, self._steering)
        for begin, _ in spans:
            shift = next(shift for start, _, shift in reversed(pieces) if start <= begin)
            self._check_prompt(read.text, begin + shift, ids, first, steers)
        self.image_ids |= {*ids[~inside].tolist()} & self._added
        learned &= ~torch.isin(ids, torch.tensor([IGNORED, *self._begins]))
        if spans and not learned.any():
            raise Refused("nothing to learn: the tokenizer reads no token in the answers", _OTHER_WORDS)
        return torch.where(learned, ids, IGNORED)

    def _pieces(self, text, expanded):
        """(start, stop, how much further on in `expanded`) of what stands between the images of `text`."""
        borders = [0, *(index for match in self._image.finditer(text) for index in match.span()), len(text)]
        pieces, limit = [], len(expanded)
        for start, stop in reversed([*zip(borders[::2], borders[1::2], strict=True)]):
            limit = expanded.rfind(text[start:stop], 0, limit)
            if limit < 0:
                what = shortened(repr(text[start:stop]), 200)
                raise Refused(f"the processor changes the text before its tokenizer reads it: {what}", _OTHER_WORDS)
            pieces.insert(0, (start, stop, limit - start))
        return pieces

    def _check_prompt(self, text, end, ids, first, steers):
        """Of a prompt that ends at `end` in what the tokenizer read.

        What a tokenizer reads after a control token does not depend on what stands before: the last one is enough.
        """
        before = first < end
        steering = (before & steers).nonzero()
        begin = int(steering[-1]) if len(steering) else 0
        prompt = text[first[begin] if begin else 0 : end]
        if self.tokenizer(prompt, add_special_tokens=False)["input_ids"] != ids[begin:][before[begin:]].tolist():
            raise Refused(
                f"the tokenizer joins the end of the prompt, {prompt[-20:]!r}, with the start of the answer, "
                f"{text[end:][:20]!r}: the model would learn to answer a prompt that it never meets",
                "begin the answer otherwise, or " + _TEMPLATE,
            )


def _control_tokens(processor, family):
    """The added tokens that steer a conversation, and are no words of it; all others are learned.

    They are special, and named (`eos_token`), written by the chat template or the processor, of the form `<|...|>` or
    the family's; other special ones somebody added for his own answers. One that swallows the blanks beside it, such as
    Phi-3's `</s>`, is no word of a text, either.
    """
    names = processor.tokenizer.special_tokens_map.values()
    written = " ".join(str(text) for text in (*names, *vars(processor).values()) if isinstance(text, str | dict))
    steers = re.compile("|".join(filter(None, (r"<\|.*\|>", family.control_tokens)))).fullmatch
    return {*names} | {
        token.content
        for token in processor.tokenizer.added_tokens_decoder.values()
        if token.lstrip or token.rstrip or token.special and (token.content in written or steers(token.content))
    }


def _left_out(messages, text):
    """The role of a turn that a template did not write, if any; a system turn's text may also be said elsewhere."""
    asked = [message for message in messages if message["role"] != "assistant"]
    for message in asked:
        places = asked if message["role"] == "system" else [message]
        for part in filter(None, _texts(message)):
            if text.count(part) < sum(other.count(part) for one in places for other in _texts(one)):
                return message["role"]
    return None


def _texts(message):
    """The texts of a message, each without the blanks around it, which templates may trim."""
    content = message["content"]
    texts = [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]
    return [text.strip() for text in texts]


class Read(NamedTuple):
    """One text as a tokenizer read it, images expanded: its ids, and the first character of each token."""

    text: str
    ids: list[int]
    starts: list[int]


class ListeningTokenizer:
    """Stands in for the tokenizer of a processor, and keeps what it reads: a `Read` for each text."""

    def __init__(self, tokenizer):
        self.tokenizer, self.read = tokenizer, []

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def __call__(self, text, *args, return_tensors=None, **options):
        made = self.tokenizer(text, *args, return_offsets_mapping=True, **options)
        parts = [made["input_ids"], made["attention_mask"], made.pop("offset_mapping")]
        rows = [(text, *parts)] if isinstance(text, str) else zip(text, *parts, strict=True)
        for one, ids, mask, offsets in rows:
            first = [start for start, _ in compress(offsets, mask)]
            self.read.append(Read(one, [*compress(ids, mask)], first))
        return made.convert_to_tensors(return_tensors)  # now: of lists, the offsets are read in less time


def _lost(answer, written):
    """(problem, remedy) where a template did not write an answer with reasoning whole and once; else None."""
    if not any(tag in answer for tag in THINK_TAGS):
        return None
    reasoning, rest = (" ".join(part.split()) for part in split_thinking(answer))
    found = " ".join(written.split())
    if rest not in found:
        return _LESS_TEXT
    if reasoning not in found[: found.rindex(rest)]:
        return _NO_REASONING
    return _TWICE if found.count(THINK_TAGS[1]) > answer.count(THINK_TAGS[1]) else None
