"""Answers come in row order, whatever the batches, and survive an interruption."""

import json
import logging
import os
from functools import partial

import numpy as np
import pytest
import torch
from datasets import Dataset, List
from datasets import Image as ImageFeature
from filelock import FileLock
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, TextStreamer

from vlmhelpers.batches.pixel_cache import precompute
from vlmhelpers.data.schema import FEATURES, make_pair, make_row, text_part, user
from vlmhelpers.evaluation.scoring import evaluate, says_all
from vlmhelpers.families import TINY_BASES, family_of, tiny_model
from vlmhelpers.inference.answer_log import row_keys
from vlmhelpers.inference.generation import generate, stream_answer, stream_conversation
from vlmhelpers.inference.likelihood import rank_pairs
from vlmhelpers.models.loading import load_model
from vlmhelpers.samples.drawing import QUESTIONS, sample_products

WORDS = [("What is the opposite of big?", "Small.", []), ("Write 3 as a word.", "Three.", [])]
SIZES = (96, 64, 160, 96, 128, 224)


@pytest.fixture(scope="module", params=TINY_BASES)
def loaded(request):
    return load_model(tiny_model(request.param), bits=16)


@pytest.fixture(scope="module")
def qwen():
    return load_model(tiny_model("qwen3-vl"), bits=16)


@pytest.fixture
def words(rows_of):
    """Five questions without pictures, of different lengths."""
    return rows_of(
        [(f"{'Please. ' * i}{question}", answer, []) for i, (question, answer, _) in enumerate(WORDS * 3)][:5]
    )


class Failing:
    """Stands in for a model's `generate`: raises what `reason` says for a batch and the number of the call."""

    def __init__(self, model, reason):
        self.generate, self.reason = model.generate, reason
        self.sizes, self.lengths = [], []

    def __call__(self, **inputs):
        self.sizes.append(inputs["input_ids"].shape[0])
        self.lengths.append(inputs["input_ids"].shape[1])
        if error := self.reason(self.sizes):
            raise error
        return self.generate(**inputs)


@pytest.mark.slow
def test_mixed_rows_are_answered_in_order_in_any_batch_size(loaded, rows_of):
    model, processor = loaded
    samples = [sample_products(1, f"order {i}", size)[0] for i, size in enumerate(SIZES * 2)]
    rows = [(q, a(p), [image]) for (p, image), (q, a) in zip(samples, list(QUESTIONS.items()) * 3, strict=False)]
    rows[3:3] = WORDS
    rows.append(("Which of these is cheaper?", "None.", [samples[0][1], samples[4][1]]))
    rows.append((f"{'This is a long story about a product. ' * 12}Describe this product.", "None.", [samples[1][1]]))
    dataset = rows_of(rows)
    alone = generate(model, processor, dataset, batch_size=1, progress=False)
    together = generate(model, processor, dataset, batch_size=5, progress=False)
    assert alone == together == generate(model, processor, dataset, batch_size=32, progress=False)
    assert together[3:5] == ["Small.", "Three."]
    right = [answer == row[1] for answer, row in zip(together, rows, strict=True)]
    of_known_size = [i for i in range(14) if i < 3 or i > 4 and SIZES[(i - 2) % 6] == 96]
    assert sum(right[i] for i in of_known_size) >= len(of_known_size) - 1


def test_long_answers_are_the_same_in_any_batch_size(loaded, rows_of):
    """No end token is allowed: all rows go on to the limit, far from what the model knows."""
    model, processor = loaded
    pictures = [image for size in (64, 160) for _, image in sample_products(2, f"long {size}", size)]
    dataset = rows_of([("Describe this product." * (i + 1), "", [image]) for i, image in enumerate(pictures)])
    options = {"max_new_tokens": 48, "min_new_tokens": 48, "progress": False}
    alone = generate(model, processor, dataset, batch_size=1, **options)
    assert alone == generate(model, processor, dataset, batch_size=4, **options)
    assert all(len(answer) > 60 for answer in alone)


def test_a_streamed_answer_is_that_of_generate(loaded, rows_of, tmp_path, capsys):
    model, processor = loaded
    pictures = [image for _, image in sample_products(2, "stream", 96)]
    pictures[0].save(tmp_path / "first.png")
    cases = [("Write 3 as a word.", [], ()), ("Describe this product.", pictures[:1], tmp_path / "first.png")]
    cases.append(("Describe this product.", pictures, pictures))
    dataset = rows_of([(prompt, "", images) for prompt, images, _ in cases])
    expected = generate(model, processor, dataset, max_new_tokens=32, progress=False)
    capsys.readouterr()
    for (prompt, _, images), answer in zip(cases, expected, strict=True):
        pieces = []
        assert stream_answer(model, processor, prompt, images, max_new_tokens=32, write=pieces.append) == answer
        assert "".join(pieces) == answer and (len(pieces) > 1 or len(answer) < 8)
        assert stream_answer(model, processor, prompt, images, max_new_tokens=32) == answer
        assert capsys.readouterr().out == f"{answer}\n"
    assert len(expected[1]) > 20


def test_training_mode_comes_back(qwen, rows_of):
    model, processor = qwen
    dataset = rows_of([("Write 3 as a word.", "Three.", [])])
    assert generate(model.train(), processor, dataset, progress=False) == ["Three."] and model.training
    generate(model.eval(), processor, dataset, progress=False)
    assert not model.training


def test_greedy_whatever_the_models_own_settings_say(qwen, words, monkeypatch, caplog):
    model, processor = qwen
    expected = generate(model, processor, words, progress=False)
    own = {"do_sample": True, "temperature": 5.0, "top_k": 3, "repetition_penalty": 30.0, "num_beams": 2}
    for name, value in own.items():
        monkeypatch.setattr(model.generation_config, name, value)
    logging.getLogger("transformers").addHandler(caplog.handler)
    assert generate(model, processor, words, progress=False) == expected
    assert not caplog.records
    assert generate(model, processor, words, progress=False, repetition_penalty=30.0) != expected
    torch.manual_seed(0)
    hot = [generate(model, processor, words, progress=False, do_sample=True, num_beams=1) for _ in range(2)]
    assert hot[0] != hot[1]


@pytest.mark.slow
def test_the_longest_come_first_and_memory_that_runs_out_halves_the_batch(qwen, rows_of, monkeypatch, capsys):
    model, processor = qwen
    dataset = rows_of([("Write 3 as a word. " * (1 + i % 7), str(i), []) for i in range(11)])
    expected = generate(model, processor, dataset, progress=False)
    errors = [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()]
    errors.append(
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried")
    )
    for error in errors:
        failing = Failing(model, lambda sizes, error=error: error if sizes[-1] > 3 else None)
        monkeypatch.setattr(model, "generate", failing)
        assert generate(model, processor, dataset, batch_size=8, progress=False) == expected
        monkeypatch.undo()
        assert failing.sizes == [8, 4, 2, 2, 2, 2, 2, 1]
        assert failing.lengths == sorted(failing.lengths, reverse=True)
        assert "out of memory with 8 rows: going on with 4 in a batch" in capsys.readouterr().out


@pytest.mark.slow
def test_a_row_that_memory_does_not_suffice_for_is_named(qwen, words, monkeypatch):
    model, processor = qwen
    monkeypatch.setattr(model, "generate", Failing(model, lambda sizes: torch.OutOfMemoryError("CUDA out of memory.")))
    with pytest.raises(RuntimeError, match=r"^row 5: memory does not suffice.*max_pixels.*max_new_tokens=9"):
        generate(model, processor, words, max_new_tokens=9, progress=False)
    numbered = words.add_column("row", [10, 20, 30, 40, 50])
    with pytest.raises(RuntimeError, match=r"^row 50:"):
        generate(model, processor, numbered, batch_size=2, progress=False)
    monkeypatch.setattr(model, "generate", Failing(model, lambda sizes: RuntimeError("device-side assert")))
    with pytest.raises(RuntimeError, match="device-side assert"):
        generate(model, processor, words, progress=False)


def test_answers_that_were_cut_off_are_counted(qwen, rows_of, picture, capsys):
    model, processor = qwen
    dataset = rows_of([*WORDS, ("Describe this product.", "", [picture])])
    whole = generate(model, processor, dataset, progress=False)
    assert "cut off" not in capsys.readouterr().out
    tokens = [len(processor.tokenizer(answer)["input_ids"]) for answer in whole]
    assert max(tokens[:2]) + 1 < tokens[2]
    short = generate(model, processor, dataset, max_new_tokens=max(tokens[:2]) + 1, progress=False)
    assert "1 of 3 answers were cut off at max_new_tokens" in capsys.readouterr().out
    assert short[:2] == whole[:2] and whole[2].startswith(short[2]) and whole[2] != short[2]


def test_an_interrupted_run_goes_on_where_it_stopped(qwen, words, monkeypatch, tmp_path, capsys):
    model, processor = qwen
    expected = generate(model, processor, words, progress=False)
    run = {"batch_size": 2, "progress": False, "save_to": tmp_path / "new" / "answers.jsonl"}
    stopped = Failing(model, lambda sizes: KeyboardInterrupt() if len(sizes) == 2 else None)
    monkeypatch.setattr(model, "generate", stopped)
    with pytest.raises(KeyboardInterrupt):
        generate(model, processor, words, **run)
    lines = [json.loads(line) for line in run["save_to"].read_text().splitlines()]
    assert [line["row"] for line in lines[1:]] == [4, 2] and lines[1]["answer"] == expected[4]
    assert lines[1]["prompt"] == words[4]["messages"][0]["content"][0]["text"]
    with open(run["save_to"], "a") as file:
        file.write('{"row": 2, "prompt": "Please. Pl')  # killed while it wrote
    rest = Failing(stopped, lambda sizes: None)
    monkeypatch.setattr(model, "generate", rest)
    assert generate(model, processor, words, **run) == expected and rest.sizes == [2, 1]
    assert generate(model, processor, words, **run) == expected and rest.sizes == [2, 1]
    assert all(json.loads(line) for line in run["save_to"].read_text().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("line", [b"null", b"3", b"{", b"[1, 2]", b"{}", bytes(80), b"\xff", b"[" * 100_000, None])
def test_damaged_lines_cost_their_rows_alone(line, qwen, words, monkeypatch, tmp_path, capsys):
    model, processor = qwen
    run = {"progress": False, "save_to": tmp_path / "answers.jsonl"}
    expected = generate(model, processor, words, **run)
    head, *lines = run["save_to"].read_bytes().splitlines()
    lines[1] = lines[1].replace(b'"answer": "', b'"answer": "X') if line is None else line
    run["save_to"].write_bytes(b"\n".join([head, *lines, b""]))
    counted = Failing(model, lambda sizes: None)
    monkeypatch.setattr(model, "generate", counted)
    assert generate(model, processor, words, **run) == expected and counted.sizes == [1]
    assert "1 lines are damaged, and their rows are answered again" in capsys.readouterr().out
    assert generate(model, processor, words, **run) == expected and counted.sizes == [1]
    with open(run["save_to"], "ab") as file:
        file.write(head + b"\n" + lines[0] + b"\n")  # once more: the head is none of the answers
    assert generate(model, processor, words, **run) == expected and counted.sizes == [1]


def test_two_processes_do_not_write_one_file(qwen, words, tmp_path):
    with FileLock(tmp_path / ".answers.jsonl.lock"), pytest.raises(BlockingIOError, match="answers.jsonl: .* writes"):
        generate(*qwen, words, save_to=tmp_path / "answers.jsonl", progress=False)


def test_only_answers_to_the_same_row_are_taken_over(qwen, rows_of, picture, monkeypatch, tmp_path):
    model, processor = qwen
    pictures = [image for _, image in sample_products(3, "same", 64)]
    pictures[0].save(tmp_path / "a.png")
    rows = [("Describe this product.", "", [image]) for image in (str(tmp_path / "a.png"), *pictures[1:])]
    run = {"progress": False, "save_to": tmp_path / "answers.jsonl"}
    first = generate(model, processor, rows_of(rows), **run)
    counted = Failing(model, lambda sizes: None)
    monkeypatch.setattr(model, "generate", counted)
    assert generate(model, processor, rows_of(rows[:2]), **run) == first[:2] and not counted.sizes
    other = [("What color is it?", "", rows[0][2]), rows[2], rows[2]]
    assert generate(model, processor, rows_of(other), **run)[2] == first[2] and counted.sizes == [2]
    blank = rows_of(rows).with_transform(lambda rows: rows | {"images": [[picture] for _ in rows["images"]]})
    generate(model, processor, blank, **run)
    assert counted.sizes == [2, 3]
    generate(model, processor, blank, **run)
    assert counted.sizes == [2, 3]
    generate(model, processor, rows_of([(*row[:1], "another reference", row[2]) for row in other]), **run)
    assert counted.sizes == [2, 3]


def test_a_file_that_was_replaced_by_one_of_the_same_size_is_answered_again(qwen, rows_of, monkeypatch, tmp_path):
    model, processor = qwen
    path, images = tmp_path / "a.bmp", [image for _, image in sample_products(2, "replaced", 64)]
    images[0].save(path)
    size, dataset = path.stat().st_size, rows_of([("Describe this product.", "", [str(path)])])
    run = {"progress": False, "save_to": tmp_path / "answers.jsonl"}
    before = generate(model, processor, dataset, **run)
    time = path.stat().st_mtime_ns
    images[1].save(path)
    os.utime(path, ns=(time, time))
    assert path.stat().st_size == size
    counted = Failing(model, lambda sizes: None)
    monkeypatch.setattr(model, "generate", counted)
    after = generate(model, processor, dataset, **run)
    assert counted.sizes == [1] and after != before
    assert after == generate(model, processor, dataset, progress=False)


def test_embedded_images_with_cached_pixels_are_told_apart(qwen, rows_of, tmp_path):
    images = [image for _, image in sample_products(2, "cached", 64)]
    dataset = rows_of([("Describe this product.", "", [image]) for image in (*images, images[0])])
    first, second, third = row_keys(precompute(dataset, qwen[1], tmp_path))
    assert first == third != second and first[1] == "Describe this product."


def test_an_image_processor_need_not_say_a_size(qwen, words, monkeypatch):
    model, processor = qwen
    expected = generate(model, processor, words, progress=False)
    monkeypatch.setattr(processor.image_processor, "size", None)
    assert generate(model, processor, words, progress=False) == expected


def test_answers_of_other_settings_are_not_mixed(qwen, words, tmp_path):
    model, processor = qwen
    run = {"progress": False, "save_to": tmp_path / "answers.jsonl"}
    generate(model, processor, words, **run)
    before = run["save_to"].read_bytes()
    with pytest.raises(ValueError, match=r"answers\.jsonl holds answers with another max_new_tokens than now.*save_to"):
        generate(model, processor, words, max_new_tokens=9, **run)
    with pytest.raises(ValueError, match="another repetition_penalty than now"):
        generate(model, processor, words, repetition_penalty=1.1, **run)
    tuned = get_peft_model(load_model(tiny_model("qwen3-vl"), bits=16)[0], LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="another adapters, weights than now"):
        generate(tuned, processor, words, **run)
    assert run["save_to"].read_bytes() == before
    of_tuned = {"progress": False, "save_to": tmp_path / "tuned.jsonl"}
    generate(tuned, processor, words, **of_tuned)
    with tuned.disable_adapter(), pytest.raises(ValueError, match="another adapters than now"):
        generate(tuned, processor, words, **of_tuned)
    next(p for name, p in tuned.named_parameters() if "lora_B" in name).data += 1
    with pytest.raises(ValueError, match="another weights than now"):
        generate(tuned, processor, words, **of_tuned)


@pytest.mark.parametrize(
    "content", ["", '{"settings": {', "my notes", '{"text": "a row"}\n', "[1]\n", "null\n", "[" * 100_000 + "\n"]
)
def test_a_file_of_something_else_stays_as_it_is(content, qwen, words, tmp_path):
    model, processor = qwen
    path = tmp_path / "answers.jsonl"
    path.write_text(content)
    if content in ("", '{"settings": {'):
        assert generate(model, processor, words, save_to=path, progress=False)[0] == WORDS[0][1]
        assert len(path.read_text().splitlines()) == 6
        return
    with pytest.raises(ValueError, match="no file of answers"):
        generate(model, processor, words, save_to=path, progress=False)
    assert path.read_text() == content


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"do_sample": True, "num_return_sequences": 2},
            "one answer to each row: ask for one, and call generate again",
        ),
        ({"num_beams": 2, "num_return_sequences": 2}, "one answer to each row"),
        ({"return_dict_in_generate": True}, r"call model.generate\(\*\*vlm.VisionCollator\(processor\).prompts"),
        ({"output_scores": True}, "gives more than the text of an answer"),
        ({"generation_config": GenerationConfig(max_new_tokens=2)}, "give its settings by name"),
        ({"streamer": TextStreamer(None)}, "stream_answer shows an answer"),
        ({"max_length": 9}, "max_new_tokens counts"),
        ({"input_ids": [1]}, "the rows are what is answered"),
        ({"attention_mask": None}, "the rows are what is answered"),
        ({"pixel_values": None}, "the rows are what is answered"),
        ({"image_grid_thw": None}, "the rows are what is answered"),
        ({"prompt_lookup_num_tokens": 2}, "one row at a time: pass batch_size=1"),
        ({"assistant_model": "model"}, "one row at a time: pass batch_size=1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens=2.5: choose a whole number from 1 on"),
        ({"batch_size": True}, "batch_size=True: choose a whole number"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_options_that_give_no_text_for_each_row_are_refused(options, message, qwen, words):
    with pytest.raises(ValueError, match=message):
        generate(*qwen, words, **{"max_new_tokens": 2, "progress": False} | options)


def test_what_goes_with_one_row_at_a_time_gives_the_same_answers(qwen, words):
    few, options = words.select(range(2)), {"max_new_tokens": 4, "progress": False}
    assert generate(*qwen, few, batch_size=1, prompt_lookup_num_tokens=2, **options) == generate(*qwen, few, **options)


def test_what_a_models_own_settings_return_does_not_count(qwen, words, monkeypatch):
    expected = generate(*qwen, words, max_new_tokens=2, progress=False)
    own = {"return_dict_in_generate": True, "num_return_sequences": 2, "do_sample": True, "output_scores": True}
    for name, value in own.items():
        monkeypatch.setattr(qwen[0].generation_config, name, value)
    for options in ({}, dict.fromkeys(own), dict.fromkeys(["num_beams", "use_cache", "pad_token_id"])):
        assert generate(*qwen, words, max_new_tokens=2, progress=False, **options) == expected


@pytest.mark.parametrize(
    "use",
    [
        lambda model, processor: generate(model, processor, [make_row("?", "a")]),
        lambda model, processor: stream_answer(model, processor, "?"),
        lambda model, processor: rank_pairs(model, processor, [make_pair("?", "a", "b")]),
    ],
)
def test_what_is_no_model_or_no_processor_is_said(use, qwen):
    model, processor = qwen
    for wrong in (processor.tokenizer, model, None):
        with pytest.raises(TypeError, match="processor is a .*, and no processor: pass the processor that vlm.load_mo"):
            use(model, wrong)
    for wrong in ("qwen3-vl", processor):
        with pytest.raises(TypeError, match="model is a .*, and no loaded model: pass the model that vlm.load_model"):
            use(wrong, processor)


@pytest.mark.parametrize("image, message", [("none.png", "missing file: .*Remedy: put"), (b"text", "not an image: .*")])
def test_an_image_that_cannot_be_decoded_is_named_by_its_row(image, message, qwen, tmp_path):
    image = str(tmp_path / image) if isinstance(image, str) else image
    rows = [make_row("?", "a"), make_row("?", "a", [image])]
    for use in (partial(generate, *qwen, progress=False), partial(evaluate, ["a", "a"], judge=says_all)):
        with pytest.raises(ValueError, match=f"row 2: {message}"):
            use(rows)
    assert evaluate(["a", "a"], rows).hits == (True, True)  # which looks at no image


def test_numbers_of_numpy_beams_and_strings_that_end_an_answer(qwen, words):
    options = {"batch_size": np.int64(2), "max_new_tokens": np.int64(2), "progress": False}
    assert generate(*qwen, words, **options) == generate(*qwen, words, max_new_tokens=2, progress=False)
    assert len(generate(*qwen, words, num_beams=2, **options)) == len(words)
    whole = generate(*qwen, words, max_new_tokens=8, progress=False)
    stopped = generate(*qwen, words, max_new_tokens=8, progress=False, stop_strings=["e"])
    assert stopped != whole and all(all_of_it.startswith(text) for all_of_it, text in zip(whole, stopped, strict=True))


def test_rows_in_any_form_get_the_same_answers(qwen, rows_of, picture, tmp_path):
    dataset = rows_of([(f"What {i}?", "a", [picture]) for i in range(3)])
    options = {"max_new_tokens": 2, "progress": False}
    expected = generate(*qwen, dataset, **options)
    undecoded = dataset.cast_column("images", List(ImageFeature(decode=False)))
    for rows in ([*dataset], iter([*dataset]), dataset.with_format("torch"), dataset.with_format("numpy"), undecoded):
        assert generate(*qwen, rows, **options) == expected
    assert generate(*qwen, dataset[0], save_to=tmp_path / "answers.jsonl", **options) == expected[:1]
    assert generate(*qwen, [], **options) == generate(*qwen, dataset.select([]), **options) == []
    with pytest.raises(ValueError, match="a stream may have no end"):
        generate(*qwen, dataset.to_iterable_dataset(), **options)


def test_a_batch_of_no_rows_is_refused(qwen, words):
    with pytest.raises(ValueError, match="batch_size=0"):
        generate(*qwen, words, batch_size=0)


def test_a_conversation_is_answered_after_its_earlier_turns(loaded, rows_of):
    model, processor = loaded
    ((_, image),) = sample_products(1, "talk", 96)
    row = rows_of([("Describe this product.", "Small.", [image])])[0]
    messages = [*row["messages"], user("Write 3 as a word.")]
    if family_of(processor).name != "llama-3.2-vision":  # which takes no system turn beside an image
        messages.insert(0, {"role": "system", "content": [text_part("Be brief.")]})
    asked = Dataset.from_list([{"messages": messages, "images": [image]}], features=FEATURES)
    (expected,) = generate(model, processor, asked, max_new_tokens=16, progress=False)
    pieces = []
    answer = stream_conversation(model, processor, messages, [image], 16, pieces.append)
    assert answer == expected == "".join(pieces)


def test_progress_can_be_told_to_a_function(qwen, words):
    told = []
    generate(*qwen, words, batch_size=1, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, len(words)) for done in range(len(words) + 1)]
