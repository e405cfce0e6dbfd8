"""The label mask of a row: its tokens in color, trained, ignored, or standing for an image."""

from functools import partial
from itertools import groupby

from markupsafe import Markup, escape

from vlmhelpers.batches.chat_template import IGNORED
from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.batches.conversation import plain_row
from vlmhelpers.batches.preference import AnswerCollator
from vlmhelpers.common.display import NO_FORMULAS, Html, thumbnail
from vlmhelpers.common.images import open_image

MOST_THUMBNAILS = 3

# Half-transparent colors and the page's own text color: readable on a light and on a dark page.
_STYLES = {
    "trained": "background:#2da44e59;border-bottom:2px solid #2da44e;color:inherit",
    "ignored": "background:#8888881f;color:inherit",
    "image": "background:#388bfd59;border-radius:4px;padding:0 4px;color:inherit",
}
_EVERY_SECOND = "background:#8888882b"  # sets a token off from its neighbors
_PAGE = Markup('<div style="display:flex;gap:12px"><div>{}</div><div>{}</div></div>')
_SEQUENCE = Markup(
    f'{{}} tokens: {{}}<div class="{NO_FORMULAS}" style="font-family:monospace;line-height:1.8;white-space:pre-wrap;'
    'overflow-wrap:anywhere">{}</div>'
)


def show_mask(collator: VisionCollator | AnswerCollator, row: dict) -> Html:
    """What `collator` makes of `row`: its tokens, which of them are trained, and where the images stand.

    Of a pair both sides, one below the other. Returns an object that a notebook shows in color, beside the row's first
    images, and a terminal as text: blanks as `·`, line breaks as `⏎`, a space between two tokens, the tokens of an
    image as one count. Raises what the collator raises.
    """
    batch = collator([row])
    trained = batch["labels"] != IGNORED if "labels" in batch else batch["completion_mask"].bool()
    sequences = zip(batch["input_ids"], trained, batch["attention_mask"].bool(), strict=True)
    masks = [_mask(ids[real], on[real].tolist(), collator) for ids, on, real in sequences]
    shown = plain_row(row).get("images") or []
    images = [thumbnail(open_image(one) if isinstance(one, dict) else one) for one in shown[:MOST_THUMBNAILS]]
    more = len(shown) - len(images)
    pictures = Markup("<br>").join([*images, f"and {more} more"] if more else images)
    page = _PAGE.format(pictures, Markup("").join(markup for markup, _ in masks))
    return Html(page, "\n".join(text for _, text in masks))


def _mask(ids, trained, collator):
    """(markup, text) of one sequence."""
    tokenizer, is_image, ids = collator.processor.tokenizer, collator.is_image(ids).tolist(), ids.tolist()
    pairs = zip(is_image, trained, strict=True)
    kinds = ["image" if image else "trained" if learned else "ignored" for image, learned in pairs]
    counts = {kind: f"{kinds.count(kind)} {kind}" for kind in _STYLES}
    runs = [(kind, [ids[i] for i in indices]) for kind, indices in groupby(range(len(ids)), kinds.__getitem__)]
    runs = [(k, [f"× {len(run)}"] if k == "image" else _readable(run, tokenizer)) for k, run in runs]
    text = [f"{len(ids)} tokens: {', '.join(counts.values())}", *(f"{kind:>7} | {' '.join(run)}" for kind, run in runs)]
    spans = [_span(kind, ["image " * (kind == "image") + run[0], *run[1:]]) for kind, run in runs]
    chip = Markup('<span style="{}">{}</span>')
    legend = Markup(" ").join(chip.format(_STYLES[kind], count) for kind, count in counts.items())
    return _SEQUENCE.format(len(ids), legend, Markup("").join(spans)), "\n".join(text)


def _span(kind, texts):
    """A run of tokens; a viewer that drops styles still shows what is trained as a mark."""
    texts = [escape(text).replace("⏎", "⏎\n") for text in texts]
    texts[1::2] = [Markup(f'<span style="{_EVERY_SECOND}">{{}}</span>').format(text) for text in texts[1::2]]
    tag = "mark" if kind == "trained" else "span"
    return Markup(f'<{tag} style="{_STYLES[kind]}">{{}}</{tag}>').format(Markup("").join(texts))


def _readable(ids, tokenizer):
    """The text of each token, its blanks visible; tokens that are parts of one character are put together.

    Each is decoded after another token: at the start of a text, tokenizers like Llama 2's leave out a blank.
    """
    before, texts, waiting = [tokenizer.eos_token_id], [], []
    decode = partial(tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    for count, token in enumerate(ids, 1):
        waiting.append(token)
        text = decode(before + waiting).removeprefix(decode(before))
        if not text.endswith("\ufffd") or count == len(ids):
            texts.append(text.replace(" ", "·").replace("\t", "→").replace("\r", "␍").replace("\n", "⏎"))
            waiting = []
    return texts
