"""A tuned model that vLLM runs, by what it lies in; what vLLM does not serve is refused before anything starts."""

import os
from pathlib import Path

from vlmhelpers.commands.settings import Evaluating, Generating
from vlmhelpers.commands.tuned import Tuned, base_of, find_weights, read_settings, use_tuned, weights_digest
from vlmhelpers.export.adapter_files import ADAPTER_CONFIG_FILE
from vlmhelpers.export.adapters import load_processor
from vlmhelpers.export.serving import served_rank, vllm_command
from vlmhelpers.families import TINY_BASES
from vlmhelpers.inference.served import VllmEngine, VllmServer, open_session, request_json
from vlmhelpers.models import loading
from vlmhelpers.models.loading import resolve_model, set_max_pixels


def use_model(settings: Generating | Evaluating, tuned: Tuned | None = None) -> Tuned:
    """The model that the settings name, as `use_tuned` gives it or, by their engine, one that vLLM runs.

    Raises ValueError for what vLLM does not serve, for a model that the server does not have, and for settings of
    another engine; OSError where no server answers; and the errors of `use_tuned`.
    """
    if settings.engine == "vllm":
        return _served(settings)
    if settings.server or settings.served_as:
        raise ValueError("server and served_as are for engine=vllm: choose it, or leave them out")
    return use_tuned(settings, tuned)


def _served(settings):
    folder, run = find_weights(settings.model) if Path(settings.model).is_dir() else (settings.model, None)
    folder = resolve_model(folder)[0] if folder in TINY_BASES else str(folder)
    config = read_settings(run) if run else None
    if (Path(folder) / ADAPTER_CONFIG_FILE).is_file():
        adapter, base = folder, base_of(folder, config)
        processor, command = load_processor(folder, base), vllm_command(base, folder)
    else:
        adapter, base = None, None if config else folder
        processor, command = loading.load_processor(folder), vllm_command(merged=folder)
        if config and config.max_pixels:
            set_max_pixels(processor, config.max_pixels)
    if settings.server:
        model = _at_server(settings, folder, base, command)
    else:
        arguments = {"enable_lora": True, "max_lora_rank": served_rank(folder, base)} if adapter else {}
        model = VllmEngine(base if adapter else folder, adapter, arguments, weights_digest(folder))
    return Tuned(model, processor, folder, adapter, base, 16, run=run and str(run), config=config)


def _at_server(settings, folder, base, command):
    """The model by the name that the server has for its folder, or by that of the settings."""
    address, key = settings.server.rstrip("/"), os.environ.get("VLLM_API_KEY")
    try:
        with open_session(key) as session:
            found = request_json(session, f"{address}/models", None, "the server")
            cards = {card["id"]: card for card in found["data"]}
    except OSError as error:
        raise OSError(f"{error}. Start it with: {command}") from error
    name = settings.served_as if settings.served_as in cards else _find(cards, folder)
    if name is None or settings.served_as not in (None, name):
        remedy = f"name one with served_as, or start the server with: {command}"
        raise ValueError(f"{address} serves {', '.join(cards)}, and none is {settings.served_as or folder}: {remedy}")
    return VllmServer(address, name, cards[name].get("parent") or _find(cards, base), key, weights_digest(folder))


def _find(cards, place):
    """The name of the model that the server has read from a folder or the hub, which is what vLLM calls its root."""
    for name, card in cards.items():
        if place in (name, root := card.get("root")) or (root and Path(root).resolve() == Path(place or ".").resolve()):
            return name
    return None
