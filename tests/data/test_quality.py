"""What the report says of images and questions, beside the usual advice."""

import pytest
from checked_rows import PICTURES, dataset_of, encoded, row_of
from datasets import Dataset
from PIL import Image

from vlmhelpers.batches.validation import check_dataset
from vlmhelpers.data.schema import PAIR_FEATURES, make_pair, make_row


def picture(number, width, height, image_format="PNG", **options):
    """A picture of that size as bytes; each number is another picture."""
    image = Image.new("RGB", (width, height), (number, 0, 0))
    return encoded(image, image_format, **options)


def lines(*pictures, questions=("What?", "Who?")):
    rows = [make_row(questions[i % len(questions)], f"It {i}.", [image]) for i, image in enumerate(pictures)]
    return check_dataset(dataset_of(*rows), near_duplicates=False, progress=False).quality


def test_ordinary_images_are_told_in_a_line():
    assert lines(*(picture(i, 300, 240) for i in range(3))) == [
        "Images: 3 different ones; all 300 x 240 pixels; PNG; files up to 1 kB.",
        "Questions: 2 different ones in 3 sound rows, the most frequent in 2.",
    ]


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (picture(9, 512, 224), None),
        (picture(9, 223, 20), "1 with a long side under 224 pixels, where a large model sees few details"),
        (picture(9, 100, 513), "1 over 512, which take more tokens or are made smaller (preflight tells)"),
        (picture(9, 300, 300, "BMP"), "1 neither JPEG, PNG nor WebP"),
        (picture(9, 300, 300, "WEBP"), None),
        (picture(9, 300, 300, "MPO", append_images=[Image.new("RGB", (30, 30))], save_all=True), None),
    ],
)
def test_what_is_beside_the_usual_advice_is_counted(image, told):
    found = lines(picture(1, 300, 200), image)[1]
    assert found == f"Beside the usual advice: {told}." if told else found.startswith("Questions")


def test_sizes_formats_and_heavy_files(tmp_path):
    (tmp_path / "large.jpg").write_bytes(picture(1, 900, 300, "JPEG") + b" " * 5_000_000)
    rows = [make_row("What?", f"It {i}.", [picture(i, 240 + 10 * i, 240)]) for i in range(4)]
    rows.append(make_row("What?", "Large.", [{"path": str(tmp_path / "large.jpg"), "bytes": None}]))
    facts, beside, asked = check_dataset(dataset_of(*rows), progress=False).quality
    heaviest = (tmp_path / "large.jpg").stat().st_size / 1000
    sizes = "long side 240 to 900 pixels, median 260"
    assert facts == f"Images: 5 different ones; {sizes}; PNG 4, JPEG 1; files up to {heaviest:,.0f} kB."
    assert "; 1 over 5 MB." in beside and asked.startswith("Questions: all 5 sound rows ask the same")


def test_an_image_counts_once_and_what_cannot_be_used_not_at_all():
    data = encoded(PICTURES[0])
    rows = [make_row(f"Question {i}?", "Yes.", [data]) for i in range(3)]
    broken = make_row("Question 9?", "Yes.", [data[:200]])
    facts, _, asked = check_dataset(dataset_of(*rows, broken), progress=False).quality
    assert facts.startswith("Images: 1 different") and asked.startswith("Questions: 3 different ones in 3 sound rows")


def test_pairs_are_told_by_their_prompts_and_text_by_its_questions_alone():
    pairs = [make_pair("Which?", f"A{i}.", f"B{i}.") for i in range(3)]
    found = check_dataset(Dataset.from_list(pairs, features=PAIR_FEATURES), progress=False).quality
    assert found == ["Questions: all 3 sound rows ask the same; other wordings are not trained."]


def test_the_lines_stand_in_the_report_as_text_and_html():
    report = check_dataset(dataset_of(row_of(0), row_of(1)), progress=False)
    assert repr(report).splitlines()[1:] == report.quality and len(report.quality) == 3
    assert all(f"<p>{line}</p>" in report._repr_html_() for line in report.quality)
