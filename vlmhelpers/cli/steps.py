"""The commands before and after a training: what it will take, and what becomes of it."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace

import vlmhelpers as vlm
from vlmhelpers import commands
from vlmhelpers.cli.parser import STEPS, make_settings
from vlmhelpers.cli.runs import read_config
from vlmhelpers.common.distributed import only_main_prints
from vlmhelpers.common.printable import one_line

__all__ = ["chat", "evaluate", "export", "generate", "merge", "preflight", "push"]

_HINT = "A line is a question. /image FILE shows it an image, /system TEXT sets a system prompt; /clear, /quit"


def preflight(config: str | None = None, gpu: str | None = None, **changes: object) -> bool:
    """Prints the plan of a run; whether it cannot be trained as it is."""
    _prepare()
    plan = commands.preflight(read_config(config, **changes), gpu)
    print(plan)
    return bool(plan.problems)


def generate(image: Iterable[str] = (), **options: object) -> None:
    """Prints or writes answers to one prompt, or to rows; whatever else is said goes to stderr."""
    settings = make_settings(STEPS["generate"], options)
    with redirect_stdout(sys.stderr), only_main_prints():
        _prepare(settings.backend)
        found = commands.generate_answers(settings, images=image)
        print("\n".join(filter(None, [found.note, str(found.answers.speed or "")])))
    with only_main_prints():
        print(found)


def evaluate(**options: object) -> None:
    """Prints scores of a tuned model and its base."""
    settings = make_settings(STEPS["evaluate"], options)
    with only_main_prints():
        _prepare(settings.backend)
        print(commands.evaluate_run(settings))


def merge(**options: object) -> bool:
    """Merges an adapter; whether the result does not answer as it should."""
    return _export(make_settings(STEPS["merge"], options))


def export(**options: object) -> bool:
    """Exports what a run has trained; whether the result does not answer as it should."""
    return _export(make_settings(STEPS["export"], options))


def _export(settings):
    _prepare()
    exported = commands.export_run(settings)
    print(exported)
    return not exported.ok


def push(**options: object) -> None:
    """Shows what would be sent to the Hub, or sends it."""
    settings = make_settings(STEPS["push"], options)
    _prepare()
    print(commands.push_run(settings))


def chat(image: Iterable[str] = (), **options: object) -> None:
    """Answers the lines that come in until they end."""
    from vlmhelpers.common.image_workers import open_apart

    settings = make_settings(STEPS["chat"], options)
    waiting = [open_apart(path) for path in image]  # before the model, which takes its time
    _prepare(settings.backend)
    tuned = commands.load_tuned(settings.model, settings.bits, settings.backend)
    if tuned.note:
        print(one_line(tuned.note), file=sys.stderr)
    conversation = commands.Conversation(tuned, settings, settings.base)
    print(_HINT, file=sys.stderr)
    for line in _lines():
        try:
            waiting = _take(conversation, line, waiting)
        except StopIteration:
            return
        except (ValueError, OSError) as error:  # the conversation stays as it was
            print(one_line(str(error)), file=sys.stderr)


def _lines() -> Iterator[str]:
    """What is typed or piped in, line by line."""
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return


def _take(conversation, line, waiting):
    """Does what a line says, and returns the images that wait for the next question. Raises StopIteration to end."""
    from vlmhelpers.common.image_workers import open_apart

    word, _, rest = line.partition(" ")
    if word == "/quit":
        raise StopIteration
    if word == "/clear":
        conversation.clear()
        return []
    if word == "/system":
        conversation.answering = replace(conversation.answering, system=rest.strip() or None)
        return waiting
    if word == "/image":
        return [*waiting, open_apart(rest.strip())]
    if line:
        conversation.ask(line, waiting)
        return []
    return waiting


def _prepare(backend="auto"):
    """Imports Unsloth, where it is named, before transformers, and silences what nobody can act on."""
    if backend == "unsloth":
        vlm.models.use_unsloth()
    vlm.quiet()
