"""A picture of what a row teaches: its tokens in colour, trained, ignored, or standing for an image."""

import html
from itertools import groupby

from vlmhelpers.batches.chat_template import IGNORED
from vlmhelpers.common.display import Html, thumbnail

MOST_THUMBNAILS = 3

# Half-transparent colours and the page's own text colour: readable on a light and on a dark page.
_STYLES = {
    "trained": "background:#2da44e59;border-bottom:2px solid #2da44e;color:inherit",
    "ignored": "background:#8888881f;color:inherit",
    "image": "background:#388bfd59;border-radius:4px;padding:0 4px;color:inherit",
}
_EVERY_SECOND = "background:#8888882b"  # sets a token off from its neighbours


def show_mask(collator, row):
    """What `collator` makes of `row`: its tokens, which of them are trained, and where the images stand.

    Returns an object that a notebook shows in colour, beside the row's first images, and a terminal as text:
    blanks as `·`, line breaks as `⏎`, a space between two tokens, the tokens of an image as one count.
    Raises what the collator raises.
    """
    batch = collator([row])
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    kinds = [_kind(token, label, collator.processor) for token, label in zip(ids, labels, strict=True)]
    legend = {kind: f"{kinds.count(kind)} {kind}" for kind in _STYLES}
    runs = [(kind, [ids[i] for i in places]) for kind, places in groupby(range(len(ids)), kinds.__getitem__)]
    tokenizer = collator.processor.tokenizer
    lines = [f"{kind:>7} | {_as_text(kind, run, tokenizer)}" for kind, run in runs]
    spans = [_as_html(kind, run, tokenizer) for kind, run in runs]
    text = "\n".join([f"{len(ids)} tokens: {', '.join(legend.values())}", *lines])
    return Html(_markup(len(ids), legend, spans, row.get("images") or []), text)


def _markup(count, legend, spans, images):
    chips = " ".join(f'<span style="{_STYLES[kind]}">{text}</span>' for kind, text in legend.items())
    return (
        f'<div style="display:flex;gap:12px"><div>{_thumbnails(images)}</div><div>{count} tokens: {chips}'
        '<div style="font-family:monospace;line-height:1.8;white-space:pre-wrap;overflow-wrap:anywhere">'
        f"{''.join(spans)}</div></div></div>"
    )


def _kind(token, label, processor):
    if token == processor.image_token_id:
        return "image"
    return "ignored" if label == IGNORED else "trained"


def _as_text(kind, ids, tokenizer):
    return f"× {len(ids)}" if kind == "image" else " ".join(_readable(ids, tokenizer))


def _as_html(kind, ids, tokenizer):
    if kind == "image":
        return f'<span style="{_STYLES["image"]}">image × {len(ids)}</span>'
    texts = [html.escape(text).replace("⏎", "⏎\n") for text in _readable(ids, tokenizer)]
    texts[1::2] = [f'<span style="{_EVERY_SECOND}">{text}</span>' for text in texts[1::2]]
    tag = "mark" if kind == "trained" else "span"  # a viewer that drops styles still shows a mark
    return f'<{tag} style="{_STYLES[kind]}">{"".join(texts)}</{tag}>'


def _readable(ids, tokenizer):
    """The text of each token, its blanks visible; tokens that are parts of one character are put together."""
    texts, waiting = [], []
    for place, token in enumerate(ids, 1):
        waiting.append(token)
        text = tokenizer.decode(waiting, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if not text.endswith("\ufffd") or place == len(ids):
            texts.append(text.replace(" ", "·").replace("\t", "→").replace("\r", "␍").replace("\n", "⏎"))
            waiting = []
    return texts


def _thumbnails(images):
    more = len(images) - MOST_THUMBNAILS
    shown = [thumbnail(image) for image in images[:MOST_THUMBNAILS]]
    return "<br>".join([*shown, f"and {more} more"] if more > 0 else shown)
