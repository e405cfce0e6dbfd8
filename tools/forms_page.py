"""The forms of data that the readers take, and the tables of them in docs/data-forms.md and README.md.

python tools/forms_page.py           rewrite the tables
python tools/forms_page.py --check   only say whether they are those of today (exit code 1 when not)
"""

import argparse
import re
import sys
from pathlib import Path
from typing import NamedTuple

from vlmhelpers.common.files import atomic_file

ROOT = Path(__file__).resolve().parent.parent
PAGES = {ROOT / "docs" / "data-forms.md": True, ROOT / "README.md": False}  # page -> whether it tells all
_BETWEEN = re.compile(r"(<!-- forms:start -->\n).*?(<!-- forms:end -->)", re.DOTALL)


class Form(NamedTuple):
    """One form. `holds` and `images`: what is read; `refused`: what makes a row a problem that names it."""

    name: str
    holds: str
    images: str
    refused: str = ""
    samples: tuple[str, ...] = ()  # in tests/data/forms; none: built by the tests
    documentation: str = ""


_PATHS = "paths, `file:` URLs, data URIs, `{path, bytes}`; links with `download`"
FORMS = (
    Form(
        "Parquet, Hub data sets, `Dataset`",
        "columns of any form below; names of classes in the place of their numbers",
        "structs `{bytes, path}`, bytes, lists of them, in a column or a part",
        "`choices`, `options`, `choice_a` and the like beside a question, columns of boxes",
        (),
        "https://huggingface.co/docs/datasets/image_dataset",
    ),
    Form(
        "OpenAI chat",
        "`messages` of `role` (also `developer`), `content` as text or parts, `weight` 0 or 1",
        "parts `image_url` and `input_image`: data URIs, links, paths",
        "`tools`, `tool_calls`, `function_call`, `refusal`, `input_audio`, `file`",
        ("openai.jsonl", "openai_responses.jsonl"),
        "https://platform.openai.com/docs/guides/vision-fine-tuning",
    ),
    Form(
        "OpenAI preferences",
        "`input.messages`, `preferred_output`, `non_preferred_output`",
        "as in the chat",
        "`tools`",
        ("openai_dpo.jsonl",),
        "https://platform.openai.com/docs/guides/direct-preference-optimization",
    ),
    Form(
        "Fields, our own names or others",
        "a question (`text`, `instruction`, `question`, `query`, `prompt`), an answer (`response`, `description`, "
        "`output`, `answer`, `caption`, ...); `system`, `history`; one `instruction` in place of questions",
        f"`image`, `images`, `image_path`, `file_name`, ...: {_PATHS}",
        "`videos`, `audios`, `tools`, `objects`, boxes, `rejected`, `label` of a verdict; an image, a video or a "
        "sound, by its ending too, in a field that nobody named",
        ("own_fields.jsonl", "question_answer.csv", "captions.csv", "excel.csv", "lists.csv"),
    ),
    Form(
        "Messages, our own",
        "`messages` of `role` and `content`, `system`, `history` beside them",
        "parts, the list `images`, a message's own `images`; `<image>` in the user's texts",
        "as above",
        ("own_messages.jsonl",),
    ),
    Form(
        "transformers' parts",
        "`messages` with parts of `type`",
        "`path`, `url`, `base64`, `image` of a part",
        "`video`, `audio`",
        ("transformers.jsonl",),
        "https://huggingface.co/docs/transformers/chat_templating_multimodal",
    ),
    Form(
        "TRL",
        "`messages`; `prompt` and `completion` (of which the completion is learned); `prompt`, `chosen`, `rejected`; "
        "`prompt`, `completion`, `label`; `prompt` alone",
        "`image`, `images`, parts",
        "`text` alone, `tools`, `reasoning_content`, stepwise `completions`",
        (
            *("trl_messages.jsonl", "trl_prompt_completion.jsonl", "trl_preference.jsonl", "trl_unpaired.jsonl"),
            *("trl_prompt_only.jsonl", "trl_text.jsonl", "trl_stepwise.jsonl"),
        ),
        "https://huggingface.co/docs/trl/dataset_formats",
    ),
    Form(
        "ms-swift",
        "`messages` with `loss`; `query`, `response`, `history`, `system`; `rejected_response`, `label`",
        "`images` and `<image>`",
        "`objects`, `loss_scale`, `videos`, `audios`, `tools`, turns of tools",
        ("swift_messages.jsonl", "swift_query.jsonl", "swift_dpo.jsonl", "swift_kto.jsonl"),
        "https://swift.readthedocs.io/en/latest/Customization/Custom-dataset.html",
    ),
    Form(
        "LLaMA-Factory",
        "Alpaca with `system` and `history`; ShareGPT; v1: parts with `value`, `loss_weight`; `chosen`, `rejected`, "
        "`kto_tag`",
        "`images` and `<image>`; v1: parts",
        "`videos`, `audios`, `tools`, turns of tools, `reasoning`",
        (
            *("llama_factory_alpaca.json", "llama_factory_sharegpt.json", "llama_factory_ranking.json"),
            *("llama_factory_kto.json", "llama_factory_v1.jsonl", "llama_factory_v1_dpo.jsonl"),
        ),
        "https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md",
    ),
    Form(
        "LLaVA",
        "`conversations` of `from` and `value`",
        "`image`, one or a list, and `<image>`",
        "`video`, `bboxes`",
        ("llava.json",),
        "https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md",
    ),
    Form(
        "ShareGPT pairs, the Cauldron, FineVision",
        "`conversation` or `texts` of `human` or `user`, and `assistant`",
        "`images`, before the first question",
        "a pair without an answer",
        ("sharegpt_pairs.jsonl",),
        "https://huggingface.co/datasets/HuggingFaceM4/the_cauldron",
    ),
    Form(
        "Phi-3 cookbook",
        "`conversations` of `user`, `assistant`",
        "`images` of each turn",
        "a turn without an answer",
        ("phi3_cookbook.jsonl",),
        "https://github.com/microsoft/PhiCookBook",
    ),
    Form(
        "Gemini",
        "`contents` of `role` and `parts`, `systemInstruction`",
        "`fileData`, `inlineData`",
        "functions, other media than images",
        ("gemini.jsonl",),
        "https://cloud.google.com/vertex-ai/generative-ai/docs/models/gemini-supervised-tuning-about",
    ),
    Form(
        "Anthropic and Bedrock",
        "`system`, `messages` with blocks",
        "`source` of a block: `base64`, `url`, `bytes`",
        "`file_id`, `s3Location`, `document`, `tool_use`, `tool_result`, `thinking`",
        ("anthropic.jsonl", "bedrock.jsonl"),
        "https://docs.anthropic.com/en/docs/build-with-claude/vision",
    ),
    Form(
        "MiniCPM-V",
        "`conversations` of `role` and `content`",
        "`image`: a path, or `{<image_00>: path, ...}` with those placeholders",
        "placeholders and images that do not match",
        ("minicpm_v.json",),
        "https://github.com/OpenBMB/MiniCPM-V/blob/main/finetune/readme.md",
    ),
    Form(
        "Qwen-VL, InternVL",
        "`conversations`; boxes in texts stay as they are written",
        "`<img>path</img>` in the text; `image`, `<image>`",
        "`video`, `<audio>path</audio>`, `<video>path</video>`",
        ("qwen_vl.json", "internvl.jsonl"),
        "https://github.com/QwenLM/Qwen-VL#data-preparation",
    ),
    Form(
        "axolotl",
        "`messages` with `train`, `training` or `weight`, also of all parts of an answer",
        "parts, `images`",
        "`train_detail`, `segments`, `train` of some parts of an answer",
        ("axolotl.jsonl",),
        "https://docs.axolotl.ai/docs/dataset-formats/conversation.html",
    ),
    Form(
        "Label Studio",
        "`data` and the texts and choices of `annotations`, which answer a conversation in `data`; "
        "JSON_MIN and CSV, too",
        "a field of `data`; `/data/upload/` and `/data/local-files/` from `image_root`",
        "regions such as `rectanglelabels`, no annotation, several that differ",
        ("label_studio.json", "label_studio_min.json", "label_studio.csv"),
        "https://labelstud.io/guide/export",
    ),
    Form(
        "imagefolder",
        "a folder with `metadata.csv`, `.jsonl` or `.parquet`",
        "`file_name`, `file_names`, then each `*_file_name`, from the metadata's folder",
        "a folder without metadata",
        (),
        "https://huggingface.co/docs/datasets/image_dataset#imagefolder",
    ),
    Form(
        "WebDataset shards",
        "`.tar` and `.tar.gz`: a `.json` of any form above, other members as texts by their ending",
        "`.jpg`, `.png`, `.webp`, ... of one name, by their numbers, as `images` of the `.json` lists them, "
        "or where its messages name them",
        "pictures in no known order, or not all named or not there; members of a row that stand apart, two of one "
        "ending, sounds, videos and others that are no text",
        (),
        "https://huggingface.co/docs/hub/datasets-webdataset",
    ),
    Form(
        "COCO",
        "the list `annotations` beside `images`: the error says to save the rows as a list",
        "",
        "the file as it is",
        ("coco_captions.json", "coco_boxes.json"),
        "https://cocodataset.org/#format-data",
    ),
)


def table(in_full: bool) -> str:
    """The table in Markdown; in README without what is refused, and without samples."""
    heads = ["form", "what is read", "where images stand", *(["refused by name", "samples"] if in_full else [])]
    lines = [heads, ["---"] * len(heads)]
    for form in FORMS:
        name = f"[{form.name}]({form.documentation})" if form.documentation else form.name
        samples = (
            ", ".join(f"[{sample}](../tests/data/forms/{sample})" for sample in form.samples) or "built by the tests"
        )
        lines.append([name, form.holds, form.images, *([form.refused, samples] if in_full else [])])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def rewritten(page: Path, in_full: bool) -> str:
    """The text of a page with the table of today."""
    return _BETWEEN.sub(lambda found: found[1] + table(in_full) + found[2], page.read_text(encoding="utf-8"))


def main() -> int:
    """Rewrites the pages; with --check, 1 where one would change."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args().check
    old = [page for page, in_full in PAGES.items() if rewritten(page, in_full) != page.read_text(encoding="utf-8")]
    for page in old:
        print(f"{page.relative_to(ROOT)}: {'another table' if check else 'rewritten'}")
        if not check:
            text = rewritten(page, PAGES[page])
            with atomic_file(page, encoding="utf-8") as file:
                file.write(text)
    return int(check and bool(old))


if __name__ == "__main__":
    sys.exit(main())
