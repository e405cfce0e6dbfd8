"""What check_dataset keeps, the collator takes: rows of all shapes, for every processor, and by the family's name."""

import functools
import io

import pytest
from bases import DESCRIBED, GENERIC
from datasets import Dataset, List
from datasets import Image as ImageFeature
from fuzzing import AWKWARD
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from processors import processor_of

from vlmhelpers.batches import VisionCollator, check_dataset
from vlmhelpers.batches.chat_template import IGNORED
from vlmhelpers.data.schema import FEATURES, image_part, text_part, with_train
from vlmhelpers.families import family_of

_SIZES = [(60, 50), (50, 60), (56, 56), (1, 1), (300, 20), (9, 150)]
_FORMATS = [None, "numpy", "torch", "decode=False"]
_COMMON = {"derandomize": True, "database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
_MARKERS = ["\ue000the answer\ue000", "\ue000the answer0\ue001"]
_WRITTEN = ["Yes.", "What is it?", "{{ 1 }}", "{% if %}", "<think>", "a</think>b", "[INST]", *_MARKERS]
_TEXTS = st.one_of(st.sampled_from([*_WRITTEN, *AWKWARD]), st.text(max_size=12))


@functools.cache
def png(size):
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "PNG")
    return {"path": None, "bytes": buffer.getvalue()}


parts = st.one_of(st.builds(text_part, _TEXTS), st.builds(image_part))
said = st.one_of(
    st.builds(lambda parts: {"role": "user", "content": parts}, st.lists(parts, max_size=4)),
    st.builds(
        lambda text, train: {"role": "assistant", "content": [text_part(text)], "train": train},
        *(_TEXTS, st.sampled_from([None, None, None, True, False])),
    ),
    st.builds(lambda text: {"role": "system", "content": [text_part(text)]}, _TEXTS),
)


@st.composite
def rows(draw):
    """A row whose turns come in any order, and that often ends with an answer; its images are nearly always as many."""
    messages = draw(st.lists(said, max_size=5))
    if draw(st.integers(0, 9)):
        messages += [{"role": "assistant", "content": [text_part(draw(st.sampled_from(["Yes.", "é🙂"])))]}]
    number = sum(part["type"] == "image" for message in messages for part in message["content"])
    number = min(number, 5) + (draw(st.integers(0, 19)) == 0)
    return {"messages": messages, "images": [png(draw(st.sampled_from(_SIZES))) for _ in range(number)]}


def stored(rows, form):
    """The rows as a Dataset in a form that people have."""
    dataset = Dataset.from_list(rows, features=with_train(FEATURES))
    if form == "decode=False":
        return dataset.cast_column("images", List(ImageFeature(decode=False)))
    return dataset.with_format(form)


def assert_trainable(dataset, model, processor):
    """Every row that is kept has a label with the processor, alone and where it can be in a batch; others a reason."""
    report = check_dataset(dataset, model, near_duplicates=False, progress=False)
    assert report.counts["kept"] + report.counts["rejected"] == report.counts["read"] == len(dataset)
    for found in report.rejected:
        assert found["reason"] and found["remedy"] and len(found["reason"]) < 300
    collator, kept = VisionCollator(processor), report.dataset
    left_out = {found["index"] for found in report.rejected}
    for batch in [[row] for row in kept] + [[dataset[i]] for i in range(len(dataset)) if i not in left_out]:
        assert (collator(batch)["labels"] != IGNORED).any()
    if len(kept) > 1 and family_of(processor).mixable:
        assert (collator(list(kept))["labels"] != IGNORED).any(dim=1).all()


def check_examples(model, processor, examples):
    @settings(max_examples=examples, **_COMMON)
    @given(st.lists(rows(), min_size=4, max_size=10), st.sampled_from(_FORMATS))
    def test(rows, form):
        assert_trainable(stored(rows, form), model, processor)

    test()


@pytest.mark.slow  # together
@pytest.mark.parametrize("base", DESCRIBED)
def test_what_is_kept_has_labels(base, folder):
    processor = processor_of(base, folder)
    for model in (processor, family_of(processor).name):
        check_examples(model, processor, 4)


@pytest.mark.slow  # together
@pytest.mark.parametrize("base", GENERIC)
def test_what_is_kept_for_a_processor_that_nobody_has_described_has_labels(base, folder):
    processor = processor_of(base, folder)
    check_examples(processor, processor, 3)
