"""A chat template of others, tried in a process with limits: it is a program, which may loop or multiply for ever."""

import json
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

from vlmhelpers.common.processes import limit_resources, run_trial

SECONDS, GIBIBYTES = 10, 2  # of CPU time and memory, for all conversations of the trial together
_MOST_TEXT = 2**20  # characters that the trial's conversations may become: they have some thousand
_TIMEOUT = 90  # seconds, with the start of Python: for systems without limits


def check_template(processor, name: str | Path) -> None:
    """Raises ValueError, which names the model, where a chat template of its processor cannot be rendered in bounds.

    Each text is tried once per process, but for those of the tiny bases. Refused conversations are no fault here.
    """
    templates = processor.chat_template or {}
    for template in templates.values() if isinstance(templates, dict) else [templates]:
        if not isinstance(template, str):
            raise ValueError(f"{name}: its chat template is a {type(template).__name__} instead of a text")
        if template not in _own_templates() and (reason := _trial(template)):
            raise ValueError(f"{name}: its chat template {reason}. Use another one: it is not rendered here")


@cache
def _own_templates():
    from vlmhelpers.families import TINY_BASES  # heavy, and not needed in the trial

    found = set()
    for family in TINY_BASES.values():
        with suppress(FileNotFoundError):
            found.add((family.tiny_base() / "chat_template.jinja").read_text(encoding="utf-8"))
    return found


@cache
def _trial(template):
    """What is wrong with a template, or None."""
    ended, printed = run_trial("a chat template", __name__, template, _TIMEOUT)
    exceeds = f"cannot be rendered in {SECONDS} seconds and {GIBIBYTES} GiB for short conversations"
    return printed or None if ended else exceeds


def _conversations():
    text, image = {"type": "text", "text": "What is it? " * 20}, {"type": "image"}
    asked, answered = {"role": "user", "content": [text]}, {"role": "assistant", "content": [text]}
    seen, system = {"role": "user", "content": [image, text]}, {"role": "system", "content": [text]}
    yield from ([asked], [seen], [system, seen, answered, *[asked, answered] * 4])


def _main(file):
    from transformers.utils.chat_template_utils import render_jinja_template

    template = json.loads(Path(file).read_text(encoding="utf-8"))
    tokens = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<token>")
    limit_resources(SECONDS, GIBIBYTES)
    for messages in _conversations():
        for prompt in (False, True):
            try:
                ((text,), _) = render_jinja_template(
                    [messages], chat_template=template, add_generation_prompt=prompt, **tokens
                )
            except MemoryError:
                sys.exit(1)
            except Exception:  # this conversation is refused, as it will be in a batch
                continue
            if len(text) > _MOST_TEXT:
                print(f"makes {len(text):,} characters of a short conversation")
                return


if __name__ == "__main__":
    _main(sys.argv[1])
