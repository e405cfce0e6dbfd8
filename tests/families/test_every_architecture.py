"""Every architecture that transformers maps to image and text: described, generic, or refused before it is loaded."""

import pytest
from bases import GENERIC
from families_page import PAGE, differences, read_cells, supported
from known_failures import KNOWN_FAILURES
from other_families import REFUSED
from outcomes import ARCHITECTURES, all_cases, outcome_of
from transformers import AutoConfig, AutoProcessor

from vlmhelpers.families import FAMILIES, tiny_model
from vlmhelpers.families.untrainable import UNTRAINABLE
from vlmhelpers.models import load_model
from vlmhelpers.models.loading import meta_model

NESTED = {"vision-encoder-decoder": {"encoder": {"model_type": "vit"}, "decoder": {"model_type": "gpt2"}}}


@pytest.fixture(scope="module")
def page():
    return PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_page_has_its_outcome(kind, page):
    outcome = outcome_of(kind)
    assert f"| {kind} | {outcome} |" in page.splitlines()
    assert outcome.startswith("family ") == any(kind in family.model_types for family in FAMILIES.values())


def test_the_page_fits_the_families_their_declarations_and_the_known_failures(page):
    assert differences(page) == []
    assert {*read_cells(page)} == {*all_cases()} >= {*KNOWN_FAILURES}


def test_the_page_is_read_and_what_does_not_fit_is_named(page):
    (name, check), *_ = KNOWN_FAILURES
    kind = name.removeprefix("generic-")
    better = page.replace(f"| {kind} | {outcome_of(kind)} |", f"| {kind} | generic, passed |")
    assert f"{name}, {check}: ✓, and the failures that are known say otherwise" in differences(better)
    assert differences(page.replace("| internvl | ✓", "| intern | ✓"))[0] == "internvl, images: not in the page"
    assert differences(page.replace("| qwen3-vl | ✓", "| qwen3-vl | ✗"))[0].startswith("qwen3-vl, images: ✗")


def test_what_is_served_is_named_once():
    lines = [*supported()]
    assert [line.name for line in lines[: len(FAMILIES)]] == [*FAMILIES] and all(line.outcome for line in lines)
    assert len({line.name for line in lines}) == len(lines) > len(GENERIC) + len(REFUSED)


NO_TIMM = [kind for kind, reason in REFUSED.items() if "timm" in reason]


def save(kind, folder, chat_template=True):
    """Writes a folder that has the architecture's configuration, and another processor."""
    AutoConfig.for_model(kind, **NESTED.get(kind, {})).save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(tiny_model("qwen3-vl"), trust_remote_code=False)
    if not chat_template:
        processor.chat_template = processor.tokenizer.chat_template = None
    processor.save_pretrained(folder)


@pytest.mark.parametrize("kind", [kind for kind in REFUSED if kind not in NO_TIMM])
def test_what_is_refused_is_refused_before_its_weights_are_read(kind, tmp_path):
    """By its name, as an encoder-decoder, or as a processor without a chat template, which the others have."""
    save(kind, tmp_path, chat_template=kind in UNTRAINABLE)
    with pytest.raises(ValueError, match="cannot be trained by chat$|has no chat template: load_model"):
        load_model(tmp_path, bits=16)


@pytest.mark.parametrize("kind", NO_TIMM)
def test_a_model_that_needs_a_package_says_which(kind, tmp_path):
    save(kind, tmp_path)
    with pytest.raises(ImportError, match="timm"):
        meta_model(tmp_path)
