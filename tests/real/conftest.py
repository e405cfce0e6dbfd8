"""What the tests with the published vocabularies share; each is skipped where its vocabulary is out of reach."""

import copy
import functools
import json

import pytest
from real_models import model_folder, vocabulary_of
from real_vocabularies import DATA, OutOfReach, data_file

from vlmhelpers.models.loading import load_processor


@functools.cache
def _missing(vocabulary):
    """Why a vocabulary is not here, or None."""
    try:
        data_file(DATA[vocabulary])
    except OutOfReach as error:
        return str(error)


@pytest.fixture(scope="session")
def folder_of():
    """Gives the folder of a model of `real_models.NAMES`; skips where its vocabulary is out of reach."""

    def folder(name):
        if why := _missing(vocabulary_of(name)):
            pytest.skip(f"not tried with the real vocabulary of {name}: {why}")
        return model_folder(name)

    return folder


@pytest.fixture(scope="session")
def processor_of(folder_of):
    """Gives the processor of a model of `real_models.NAMES`: a copy, whose tokenizer is that of every other call."""
    load = functools.cache(load_processor)

    def processor(name):
        loaded = load(folder_of(vocabulary_of(name)))
        copied = copy.deepcopy(loaded, {id(loaded.tokenizer): loaded.tokenizer})
        if vocabulary_of(name) != name:  # all that differs is the chat template
            copied.chat_template = json.loads((folder_of(name) / "chat_template.json").read_text())["chat_template"]
        return copied

    return processor
