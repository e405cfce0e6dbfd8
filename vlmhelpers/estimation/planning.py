"""Before a run: how long the rows are, which resolution makes them fit, how much memory and time it will take."""

import copy
import random
from statistics import mean

from vlmhelpers.batches.collator import crosses_attention, largest_cap
from vlmhelpers.estimation.counting import count_again, count_rows
from vlmhelpers.estimation.memory import estimate_memory
from vlmhelpers.estimation.meta_model import states_per_image
from vlmhelpers.estimation.report import Preflight
from vlmhelpers.families.published import find_config
from vlmhelpers.models.loading import set_max_pixels


def preflight(
    dataset,
    processor,
    model_id,
    max_length=2048,
    batch_size=1,
    bits=4,
    lora_r=16,
    vision=False,
    gradient_checkpointing=True,
    train_on="assistant",
    logits="labelled",
    sample=500,
    seed=0,
):
    """A `Preflight` of training `model_id` on a Dataset of the schema: no weights are loaded, and no GPU is needed.

    Tokens are those that `VisionCollator` makes of each row with this processor; of more than `sample` rows, a random
    sample of that size is counted, drawn with `seed`. Rows that cannot be used are named in the result. Where rows are
    longer than `max_length`, the largest cap on pixels that makes the counted rows fit is proposed, and they are
    counted again with it. Memory and time are those of the rows as they would be trained: with the cap, if there is
    one. They come from a rehearsal of the step (see `estimate_memory`), three in all, of some seconds each.

    `model_id`: see `find_config`; `batch_size` to `gradient_checkpointing`: see `estimate_memory`; `train_on` and
    `logits`: see `VisionCollator`. Raises ValueError for an unknown model, and when no row can be used.
    """
    config = find_config(model_id)
    places = range(len(dataset))
    if len(dataset) > sample:
        places = sorted(random.Random(seed).sample(places, sample))
    counts, unusable = count_rows(dataset, places, processor, train_on=train_on)
    if not counts:
        reasons = "; ".join(f"row {row}: {reason}" for row, reason in unusable[:3])
        raise ValueError(f"no row can be used ({reasons or 'the dataset is empty'}): run check_dataset on it")
    cap = propose_cap(processor, counts, max_length)
    capped, after = processor, counts
    if cap is not None:
        capped = with_cap(processor, cap)
        after = count_again(counts, capped, train_on=train_on)

    options = (bits, lora_r, vision, gradient_checkpointing)
    rows = {
        "longest row": _longest(after, config),
        "row of max_length": _stretched(_longest(after, config), config, max_length),
        "mean row": _mean(after, config),
    }
    rehearsed = {}
    for name, (tokens, image_tokens, labelled) in rows.items():
        labelled = min(max(labelled, 1), tokens - 1) if logits == "labelled" else None
        size = 1 if name == "mean row" else batch_size
        rehearsed[name] = estimate_memory(model_id, tokens, image_tokens, size, *options, labelled)
    usable = round(len(dataset) * len(counts) / len(places))
    flops = rehearsed.pop("mean row").flops * usable
    return Preflight(dataset, processor, model_id, max_length, counts, unusable, cap, capped, after, rehearsed, flops)


def propose_cap(processor, counts, max_length):
    """The largest `max_pixels` with which all rows that `counts` stand for fit into `max_length`, or None.

    None where they fit as they are, or where fewer pixels do not help: without images, or in Llama 3.2 Vision. A row
    whose text alone is too long is left out.
    """
    if crosses_attention(processor):
        return None
    long = [count for count in counts if count.total > max_length and count.image]
    caps = [largest_cap(processor.image_processor, c.sized["images"], max_length - (c.total - c.image)) for c in long]
    return min(filter(None, caps), default=None)


def with_cap(processor, max_pixels):
    """A copy of `processor` with that cap on the pixels of an image; the original stays as it is."""
    capped = copy.copy(processor)
    capped.image_processor = copy.deepcopy(processor.image_processor)
    set_max_pixels(capped, max_pixels)
    return capped


def _image_tokens(count, config):
    """What `estimate_memory` calls image tokens: the image's tokens, or the states that cross-attention looks at."""
    if config.model_type == "mllama":
        return len(count.sized["images"]) * states_per_image(config)
    return count.image


def _longest(counts, config):
    """(tokens, image tokens, labelled tokens) of the row with the most to compute."""
    longest = max(counts, key=lambda c: c.total + (_image_tokens(c, config) if config.model_type == "mllama" else 0))
    return longest.total, _image_tokens(longest, config), longest.labelled


def _stretched(row, config, max_length):
    """The same row at `max_length`: with more, or fewer, tokens of its images, or of text where it has none."""
    tokens, image_tokens, labelled = row
    if image_tokens and config.model_type != "mllama":
        image_tokens = max(0, max_length - (tokens - image_tokens))
    return max_length, image_tokens, labelled


def _mean(counts, config):
    """The mean row; in Llama 3.2 Vision with a whole number of images, at least one where any row has some."""
    image_tokens = mean(_image_tokens(count, config) for count in counts)
    if config.model_type == "mllama" and image_tokens:
        image_tokens = max(1, round(image_tokens / states_per_image(config))) * states_per_image(config)
    return round(mean(c.total for c in counts)), round(image_tokens), round(mean(c.labelled for c in counts))
