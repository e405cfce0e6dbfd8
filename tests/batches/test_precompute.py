"""Batches over precomputed pixels against batches over the pictures, and what happens to files on disk meanwhile."""

import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from PIL import Image
from transformers import AutoProcessor

from vlmhelpers.batches import precompute
from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.batches.pixel_cache import pack, unpack
from vlmhelpers.common.files import temporary_name
from vlmhelpers.data.schema import FEATURES, make_row
from vlmhelpers.evaluation.ablation import blank_images
from vlmhelpers.families import TINY_BASES, tiny_model
from vlmhelpers.models.loading import set_max_pixels
from vlmhelpers.samples.drawing import sample_products

job = sys.modules[precompute.__module__]
FEATURES_TO_STORE = job.features_to_store
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
PICTURES = [picture for _, picture in sample_products(6, "precompute", size=96)]


def load(family):
    """The tiny processor with CLIP's numbers, and with a range of sizes or numbers of tiles."""
    processor = AutoProcessor.from_pretrained(tiny_model(family))
    image_processor = processor.image_processor
    image_processor.image_mean, image_processor.image_std = CLIP["image_mean"], CLIP["image_std"]
    if family.startswith("qwen"):
        image_processor.size = {"shortest_edge": 32**2, "longest_edge": 128**2}
    elif family == "phi-3-vision":
        image_processor.num_crops = 4
    else:
        image_processor.max_image_tiles = 4
    return processor


@pytest.fixture(scope="module", params=TINY_BASES)
def processor(request):
    return load(request.param)


@pytest.fixture(scope="module")
def qwen():
    return load("qwen2.5-vl")


def files_of(folder):
    return sorted(Path(folder).rglob("*.safetensors"))


@pytest.fixture
def rows(tmp_path):
    """Rows with one, three, two and no pictures, in files and embedded, and with all that has to be repaired."""
    turned = PICTURES[3].resize((70, 33))
    turned.getexif()[0x0112] = 6
    pictures = [
        PICTURES[0].resize((48, 64)),
        PICTURES[1].resize((200, 80)).convert("CMYK"),
        turned,
        PICTURES[0].resize((48, 64)),  # one twice
        PICTURES[4].resize((400, 300)).convert("L"),
        Image.new("I;16", (64, 48), 40000),
    ]
    names = ["0.png", "1.jpg", "2.jpg", "3.png", "4.png", "5.png"]
    paths = [str(tmp_path / name) for name in names]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path, exif=picture.getexif())
    images = [{"path": path, "bytes": None} for path in paths]
    images[4] = {"path": None, "bytes": Path(paths[4]).read_bytes()}
    sets = [images[:1], images[1:4], images[4:], []]
    table = [make_row(f"Question {i}", f"The answer {i}.", images) for i, images in enumerate(sets)]
    return Dataset.from_list(table, features=FEATURES).add_column("row", [3, 4, 5, 7]).add_column("shop", list("abcd"))


def same(batch, expected):
    """Whether two batches have the same names and types, and the same bits."""
    assert list(batch) == list(expected)
    for name in batch:
        assert batch[name].dtype == expected[name].dtype and batch[name].shape == expected[name].shape
        assert batch[name].contiguous().numpy().tobytes() == expected[name].contiguous().numpy().tobytes(), name
    return True


def test_batches_are_the_same_bit_for_bit(processor, rows, tmp_path):
    stored = precompute(rows, processor, tmp_path / "pixels")
    for collator in (VisionCollator(processor), VisionCollator(processor, logits="labeled")):
        for places in ([0], [1], [2], [3], [0, 1, 2], [2, 0], [1, 1]):
            raw, ours = [rows[i] for i in places], [stored[i] for i in places]
            assert same(collator(ours), collator(raw))
            assert same(collator.prompts(ours), collator.prompts(raw))


def test_no_picture_is_opened_after_precompute_and_the_other_columns_stay(processor, rows, tmp_path):
    expected = VisionCollator(processor)([rows[0], rows[1]])
    stored = precompute(rows, processor, tmp_path / "pixels")
    for path in tmp_path.glob("*.*g"):
        path.unlink()
    assert same(VisionCollator(processor)([stored[0], stored[1]]), expected)
    assert stored.column_names == rows.column_names
    for name in ("messages", "row", "shop"):
        assert stored[name][:] == rows[name][:]
    image = stored[2]["images"][1]
    assert image["path"].endswith("5.png") and (image["width"], image["height"]) == (64, 48)


def test_the_rows_can_be_chosen_shuffled_and_saved(qwen, rows, tmp_path):
    stored = precompute(rows, qwen, tmp_path / "pixels").shuffle(seed=1).select([0, 1, 2])
    stored.save_to_disk(tmp_path / "saved")
    shuffled = rows.shuffle(seed=1)
    collator = VisionCollator(qwen)
    for i, row in enumerate(load_from_disk(tmp_path / "saved")):
        assert same(collator([row]), collator([shuffled[i]]))
    rearranged = precompute(shuffled, qwen, tmp_path / "pixels")  # a dataset with an order of its own
    assert same(collator([rearranged[2]]), collator([shuffled[2]]))


@pytest.mark.slow
def test_the_trainer_takes_precomputed_rows(qwen, rows, tmp_path):
    from transformers import AutoModelForImageTextToText
    from trl import SFTConfig, SFTTrainer

    losses = []
    for dataset in (rows, precompute(rows, qwen, tmp_path / "pixels")):
        model = AutoModelForImageTextToText.from_pretrained(tiny_model("qwen2.5-vl"), dtype=torch.float32)
        arguments = SFTConfig(
            tmp_path, per_device_train_batch_size=2, max_steps=2, max_length=None, bf16=False, use_cpu=True,
            loss_type="nll", logging_steps=1, report_to=[], save_strategy="no", disable_tqdm=True,
            gradient_checkpointing=False,
        )  # fmt: skip
        trainer = SFTTrainer(model, arguments, VisionCollator(qwen), dataset, processing_class=qwen)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(losses[0]) == 2 and losses[0] == losses[1]


class Counted:
    """Counts how often pictures are computed, and may stop the work as Ctrl-C does."""

    def __init__(self, monkeypatch, stop_after=None):
        self.count, self.stop_after = 0, stop_after
        monkeypatch.setattr(job, "features_to_store", self)

    def __call__(self, image, image_processor):
        if self.stop_after is not None and self.count >= self.stop_after:
            raise KeyboardInterrupt
        self.count += 1
        return FEATURES_TO_STORE(image, image_processor)


@pytest.fixture
def many(tmp_path):
    """40 rows with a picture each, all different."""
    paths = [tmp_path / f"picture {i}.png" for i in range(40)]
    for i, path in enumerate(paths):
        Image.new("RGB", (40 + i, 40), (6 * i, 90, 10)).save(path)
    return Dataset.from_list([make_row("What?", "A.", [str(path)]) for path in paths], features=FEATURES)


def test_an_interrupted_call_is_continued(qwen, many, tmp_path, monkeypatch):
    first = Counted(monkeypatch, stop_after=25)
    with pytest.raises(KeyboardInterrupt):
        precompute(many, qwen, tmp_path / "pixels", workers=2)
    assert len(files_of(tmp_path)) == first.count and not list(tmp_path.rglob("drafts-*"))
    rest = Counted(monkeypatch)
    stored = precompute(many, qwen, tmp_path / "pixels", workers=2)
    assert first.count + rest.count == 40 and len(files_of(tmp_path)) == 40
    again = Counted(monkeypatch)
    precompute(many, qwen, tmp_path / "pixels")
    assert again.count == 0
    collator = VisionCollator(qwen)
    assert same(collator(list(stored)), collator(list(many)))


def test_other_settings_never_meet(qwen, rows, tmp_path):
    small = load("qwen2.5-vl")
    set_max_pixels(small, 48**2)
    stored = precompute(rows, qwen, tmp_path / "pixels")
    with pytest.raises(ValueError, match="other settings of the image processor.*call precompute again"):
        VisionCollator(small)([stored[0]])
    stored_small = precompute(rows, small, tmp_path / "pixels")
    assert same(VisionCollator(small)([stored_small[0]]), VisionCollator(small)([rows[0]]))
    assert same(VisionCollator(qwen)([stored[0]]), VisionCollator(qwen)([rows[0]]))
    with pytest.raises(ValueError, match="other settings"):
        VisionCollator(qwen)([stored[0], rows[1]])


@pytest.mark.parametrize("name, value", [("image_mean", [0.5] * 3), ("do_normalize", False), ("resample", 2)])
def test_every_setting_counts(qwen, rows, tmp_path, name, value):
    other = load("qwen2.5-vl")
    setattr(other.image_processor, name, value)
    precompute(rows, qwen, tmp_path / "pixels")
    stored = precompute(rows, other, tmp_path / "pixels")
    assert same(VisionCollator(other)([stored[1]]), VisionCollator(other)([rows[1]]))
    assert not torch.equal(
        VisionCollator(other)([stored[1]])["pixel_values"], VisionCollator(qwen)([rows[1]])["pixel_values"]
    )


def test_a_changed_picture_is_computed_again(qwen, rows, tmp_path, monkeypatch):
    precompute(rows, qwen, tmp_path / "pixels")
    path, counted = tmp_path / "0.png", Counted(monkeypatch)
    size, time = path.stat().st_size, path.stat().st_mtime_ns
    os.utime(path, ns=(time, time + 1))
    precompute(rows, qwen, tmp_path / "pixels")
    assert counted.count == 0 and path.stat().st_size == size
    Image.new("RGB", (48, 64), "blue").save(path)
    os.utime(path, ns=(time, time))
    stored = precompute(rows, qwen, tmp_path / "pixels")
    assert counted.count == 1
    assert same(VisionCollator(qwen)([stored[0]]), VisionCollator(qwen)([rows[0]]))


def test_damaged_pixels_are_noticed_and_made_again(qwen, rows, tmp_path):
    stored = precompute(rows, qwen, tmp_path / "pixels")
    file = Path(stored[0]["images"][0]["pixels"])
    data = file.read_bytes()
    file.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with pytest.raises(ValueError, match="was damaged, and has been removed; call precompute again"):
        VisionCollator(qwen)([stored[0]])
    again = precompute(rows, qwen, tmp_path / "pixels")
    assert same(VisionCollator(qwen)([again[0]]), VisionCollator(qwen)([rows[0]]))


def test_equal_embedded_pictures_are_stored_once(qwen, tmp_path):
    image = {"path": None, "bytes": Path(tiny_model("qwen2.5-vl")).parents[1].joinpath("images/001.jpg").read_bytes()}
    dataset = Dataset.from_list([make_row(f"{i}?", "A.", [image]) for i in range(3)], features=FEATURES)
    stored = precompute(dataset, qwen, tmp_path)
    assert len(files_of(tmp_path)) == 1 and len({row["images"][0]["pixels"] for row in stored}) == 1


def test_a_damaged_file_is_an_error_with_a_remedy_and_is_made_again(qwen, rows, tmp_path):
    stored = precompute(rows, qwen, tmp_path / "pixels")
    file = Path(stored[0]["images"][0]["pixels"])
    file.write_bytes(file.read_bytes()[:-5])
    collator = VisionCollator(qwen)
    with pytest.raises(ValueError, match=f"{file.name}.*call precompute again"):
        collator([stored[0]])
    stored = precompute(rows, qwen, tmp_path / "pixels")
    assert same(collator([stored[0]]), collator([rows[0]]))
    shutil.rmtree(tmp_path / "pixels")
    with pytest.raises(ValueError, match=f"{file.name}.*call precompute again"):
        collator([stored[0]])


def test_an_unreadable_picture_is_named_and_the_others_stay(qwen, rows, tmp_path, monkeypatch):
    path = tmp_path / "5.png"
    sound = path.read_bytes()
    path.write_bytes(sound[:60])
    with pytest.raises(ValueError, match="^row 5, image 2: .*run check_dataset and leave out the rows"):
        precompute(rows, qwen, tmp_path / "pixels", workers=1)
    assert len(files_of(tmp_path)) == 4  # two of those five are alike
    with pytest.raises(ValueError, match="^row 3 of the dataset, image 2: "):
        precompute(rows.remove_columns("row"), qwen, tmp_path / "pixels")
    path.write_bytes(sound)
    counted = Counted(monkeypatch)
    precompute(rows, qwen, tmp_path / "pixels")
    assert counted.count == 1
    path.unlink()
    with pytest.raises(ValueError, match="^row 5, image 2: .*5.png"):
        precompute(rows, qwen, tmp_path / "pixels")
    none = Dataset.from_list([make_row("What?", "A.", [None])], features=FEATURES)
    with pytest.raises(ValueError, match="^row 1 of the dataset, image 1: no image"):
        precompute(none, qwen, tmp_path / "pixels")


def test_a_full_disk_is_refused_before_most_is_written(qwen, many, tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(job.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"1e-06 GB are free there\. Name a folder on a larger disk") as error:
        precompute(many, qwen, tmp_path / "pixels")
    written = sum(file.stat().st_size for file in files_of(tmp_path))
    told = float(re.search(r"needs about (\S+) GB more", str(error.value)).group(1)) * 1e9
    assert 0 < len(files_of(tmp_path)) <= 16
    monkeypatch.setattr(job.shutil, "disk_usage", lambda folder: usage._replace(free=2 * told))
    precompute(many, qwen, tmp_path / "pixels")
    assert written + told == pytest.approx(sum(file.stat().st_size for file in files_of(tmp_path)), rel=0.3)
    printed = capsys.readouterr().out
    assert "precompute: about" in printed and f"in {tmp_path / 'pixels'}" in printed


def test_calls_at_the_same_time_do_no_harm(qwen, many, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(precompute, many, qwen, tmp_path / "pixels", workers=2) for _ in range(4)]
    collator = VisionCollator(qwen)
    expected = collator(list(many))
    for call in calls:
        assert same(collator(list(call.result())), expected)
    assert len(files_of(tmp_path)) == 40 and not list(tmp_path.rglob("drafts-*"))


def test_temporary_files_of_killed_processes_are_removed_but_not_those_of_running_ones(qwen, many, tmp_path):
    precompute(many.select([0]), qwen, tmp_path / "pixels")
    (stored,) = files_of(tmp_path)
    young = stored.with_name(temporary_name(stored.name))
    old = stored.with_name(young.name.replace(f"-{os.getpid()}-", "-99999999-"))
    for temporary in (old, young):
        temporary.write_bytes(b"half")
    precompute(many.select([1]), qwen, tmp_path / "pixels")
    assert not old.exists() and young.exists()


def test_few_rows_are_in_memory(many):
    started = []

    def store_row(row, index):
        started.append(index)
        return index, 0

    with ThreadPoolExecutor(2) as pool:
        rows = job._stored_rows(many, store_row, pool, range(len(many)))
        for index in range(len(many)):
            assert next(rows)[0] == index
            assert len(started) <= index + job._ROWS_IN_MEMORY
        assert next(rows, None) is None


def test_the_number_of_torch_threads_is_as_before(qwen, rows, tmp_path):
    before = torch.get_num_threads()
    precompute(rows, qwen, tmp_path / "pixels", workers=3)
    assert torch.get_num_threads() == before


def test_what_cannot_be_precomputed(qwen, rows, tmp_path):
    with pytest.raises(TypeError, match="DatasetDict is no Dataset; of a DatasetDict, precompute each split"):
        precompute(DatasetDict(train=rows), qwen, tmp_path)
    with pytest.raises(ValueError, match="has a transform"):
        precompute(blank_images(rows), qwen, tmp_path)
    stored = precompute(rows, qwen, tmp_path / "pixels")
    assert precompute(stored, qwen, tmp_path / "pixels") is stored
    without = precompute(rows.select([3]), qwen, tmp_path / "pixels")
    assert without[0]["images"] == []
    nothing = precompute(rows.select([]), qwen, tmp_path / "pixels")
    assert len(nothing) == 0 and nothing.column_names == rows.column_names


def test_too_long_a_row_gets_the_same_advice(qwen, rows, tmp_path):
    stored = precompute(rows, qwen, tmp_path / "pixels")
    collator, messages = VisionCollator(qwen, max_length=40), []
    for row in (rows[1], stored[1]):
        with pytest.raises(ValueError, match="^row 4: .*makes it fit") as error:
            collator([row])
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def bytes_as_values(image_processor, *shape):
    """Pixels as the image processor makes them, from random bytes."""
    picture = torch.randint(0, 256, (shape[0], 3, *shape[1:]), generator=torch.Generator().manual_seed(0))
    p = image_processor
    return p.rescale_and_normalize(
        picture.to(torch.uint8), p.do_rescale, p.rescale_factor, p.do_normalize, tuple(p.image_mean), tuple(p.image_std)
    )


def test_pack_keeps_every_bit_and_takes_bytes_where_it_can(qwen):
    image_processor = qwen.image_processor
    tiles = bytes_as_values(image_processor, 5, 8, 6)
    mixed = tiles.clone()
    mixed[1] = 0
    mixed[2, 1, 3, 3] += 1e-6
    mixed[3] = torch.randn(3, 8, 6)
    patches = tiles.flatten(2).repeat(1, 1, 2).flatten(1)  # two equal frames
    negative = tiles.clone()
    negative[4] = -0.0
    signs = torch.zeros(2, 6)
    signs[:, 1::2] = -0.0  # two halves that are equal as numbers
    odd = bytes_as_values(image_processor, 2, 5, 5)
    for pixels, in_bytes, in_floats in (
        (tiles, 5 * 3 * 48, 0),
        (mixed, 2 * 3 * 48, 2 * 3 * 48),
        (mixed[None, None], 2 * 3 * 48, 2 * 3 * 48),
        (patches, 5 * 3 * 48, 0),
        (negative, 4 * 3 * 48, 3 * 48),
        (signs, 0, 12),
        (odd, 2 * 3 * 25, 0),
    ):
        packed = pack(pixels, image_processor)
        assert packed["bytes"].dtype == torch.uint8
        assert (packed["bytes"].numel(), packed["floats"].numel()) == (in_bytes, in_floats)
        read = torch.full_like(pixels, torch.nan)
        unpack(packed, read, image_processor)
        assert read.numpy().tobytes() == pixels.numpy().tobytes()


def test_a_picture_takes_an_eighth_of_its_floats(qwen, many, tmp_path):
    stored = precompute(many.select([5]), qwen, tmp_path / "pixels")
    floats = VisionCollator(qwen)([stored[0]])["pixel_values"].numel() * 4
    assert files_of(tmp_path)[0].stat().st_size < floats / 8 + 1000
