"""Rows that vLLM answers: what a server and an engine of it are asked, and what becomes of failures."""

import sys
import threading
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from openai_server import images_of, openai_server
from PIL import Image

from vlmhelpers.data.schema import text_part
from vlmhelpers.data.turns import with_system
from vlmhelpers.families import tiny_model
from vlmhelpers.inference import served
from vlmhelpers.inference.generation import generate
from vlmhelpers.inference.served import VllmEngine, VllmServer
from vlmhelpers.models.loading import load_processor, set_max_pixels

COLORS = [(10 * i, 255 - 10 * i, i) for i in range(7)]


@pytest.fixture(scope="module")
def processor():
    return load_processor(tiny_model("qwen3-vl"))


@pytest.fixture
def dataset(rows_of):
    """Questions about pictures of other sizes and colors, the last about two, and one without a picture."""
    pictures = [Image.new("RGB", (40 + 10 * i, 30), color) for i, color in enumerate(COLORS)]
    rows = [(f"What is {i}?", "?", [picture]) for i, picture in enumerate(pictures)]
    return rows_of([*rows, ("Why?", "?", []), ("Which?", "?", pictures[:2])])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(served, "_BACKOFF", 0.01)
    with openai_server([], key="secret") as found:
        yield found


def model_of(server, **changes):
    return VllmServer(**{"address": server.address, "name": "tuned", "base": "base", "key": "secret"} | changes)


def test_each_row_is_asked_with_its_images_and_greedily(server, processor, dataset, tmp_path):
    server.barrier = threading.Barrier(3)  # three requests are there at once
    answers = generate(model_of(server), processor, dataset, 3, 20, progress=False, save_to=tmp_path / "a.jsonl")
    assert server.most == 3 and len(server.requests) == 9
    pictures = [f"({40 + 10 * i}, 30) {color}" for i, color in enumerate(COLORS)]
    expected = [f"tuned What is {i}? {picture}" for i, picture in enumerate(pictures)]
    assert answers == [*expected, "tuned Why?", f"tuned Which? {pictures[0]} {pictures[1]}"]
    for body in server.requests:
        assert (body["temperature"], body["repetition_penalty"], body["max_tokens"]) == (0, 1, 20)
        assert body["mm_processor_kwargs"]["max_pixels"] == processor.image_processor.size["longest_edge"]
    assert answers.speed.together == 3 and answers.speed.device == f"vLLM at {server.address}"
    server.requests.clear()
    again = generate(model_of(server), processor, dataset, 3, 20, progress=False, save_to=tmp_path / "a.jsonl")
    assert again == answers and again.speed == answers.speed and not server.requests
    with pytest.raises(ValueError, match="another served model than now"):
        generate(model_of(server, name="base"), processor, dataset, 3, 20, save_to=tmp_path / "a.jsonl")


def test_images_lose_nothing_and_texts_are_those_of_the_collator(server, processor, rows_of):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 47, 3), dtype=np.uint8))
    dataset = with_system(rows_of([("Say <|im_end|> and <b>.", "?", [noise])]), "Be brief.")
    generate(model_of(server), processor, dataset, progress=False)
    (body,) = server.requests
    (sent,) = images_of(body)
    assert np.array_equal(np.array(sent), np.array(noise))
    system, user = body["messages"]
    assert system == {"role": "system", "content": "Be brief."} and user["role"] == "user"
    assert user["content"][1] == text_part("Say < |im_end|> and <b>.")


def test_the_base_answers_while_the_adapter_is_off(server, processor, dataset):
    model = model_of(server)
    with model.disable_adapter():
        (answer,) = generate(model, processor, dataset.select([7]), progress=False)
    assert answer == "base Why?" and generate(model, processor, dataset.select([7]), progress=False) == ["tuned Why?"]


def test_sampling_is_asked_for_and_what_vllm_does_not_know_is_refused(server, processor, dataset):
    one, options = dataset.select([7]), {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0}
    generate(model_of(server), processor, one, progress=False, **options)
    generate(model_of(server), processor, one, progress=False, do_sample=True, top_k=5)
    asked = [[request[name] for name in ("temperature", "top_p", "top_k")] for request in server.requests]
    assert asked == [[0.7, 0.9, -1], [1.0, 1.0, 5]]
    with pytest.raises(ValueError, match="vLLM is not asked with num_beams"):
        generate(model_of(server), processor, one, progress=False, num_beams=2)


def test_answers_that_were_cut_off_are_counted(server, processor, dataset, capsys):
    assert generate(model_of(server), processor, dataset.select([0, 7]), 2, 2, progress=False)[1] == "tuned Why?"
    assert "1 of 2 answers were cut off at max_new_tokens=2" in capsys.readouterr().out


@pytest.mark.slow
def test_a_busy_server_is_asked_again_and_a_refused_row_is_named(server, processor, dataset, tmp_path):
    run = {"progress": False, "save_to": tmp_path / "a.jsonl", "batch_size": 1}
    server.failing = [503, 429, 500]
    expected = generate(model_of(server), processor, dataset, progress=False, batch_size=1)
    assert len(server.requests) == 9 + 3
    server.failing = [None, None, 400]
    with pytest.raises(OSError, match=r"^row 7: http.*/chat/completions answers 400: .*no <room>"):
        generate(model_of(server), processor, dataset, **run)
    server.requests.clear()
    assert generate(model_of(server), processor, dataset, **run) == expected and len(server.requests) == 7
    server.failing = [503] * 5
    with pytest.raises(OSError, match="^row 8: .* answers 503"):
        generate(model_of(server), processor, dataset.select([7]).add_column("row", [8]), progress=False)
    with pytest.raises(OSError, match="answers 401"):
        generate(model_of(server, key="wrong"), processor, dataset, progress=False)


@pytest.mark.slow
def test_no_server_and_no_answer_of_its_form_are_told(server, processor, dataset):
    with openai_server([], answer=lambda body: body["nothing"]) as broken:
        with pytest.raises(OSError, match="^row .* gives no answer"):
            generate(model_of(broken), processor, dataset, progress=False)
    with pytest.raises(OSError, match="gives no answer"):
        generate(model_of(server, address="http://127.0.0.1:9/v1"), processor, dataset, progress=False)


@pytest.fixture
def vllm(monkeypatch):
    """Stands in for vLLM, with the parts of its interface that are used: what it was given is kept."""
    given = SimpleNamespace(loaded=[], asked=[])

    class LLM:
        def __init__(self, model, *, enable_lora=False, max_lora_rank=16, **more):
            given.loaded.append({"model": model, "enable_lora": enable_lora, "max_lora_rank": max_lora_rank} | more)

        def chat(self, messages, sampling_params=None, use_tqdm=True, lora_request=None):
            given.asked.append((messages, sampling_params, lora_request))
            texts = [f"{len(images_of({'messages': one}))} images" for one in messages]
            found = [SimpleNamespace(text=text, token_ids=[1, 2], finish_reason="stop") for text in texts]
            return [SimpleNamespace(outputs=[one]) for one in found]

    modules = {name: ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request")}
    modules["vllm"].LLM, modules["vllm"].SamplingParams = LLM, lambda **values: values
    modules["vllm.lora.request"].LoRARequest = lambda name, number, path: (name, number, path)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return given


def test_the_engine_in_this_process_answers_with_and_without_the_adapter(vllm, processor, dataset):
    model = VllmEngine("base/folder", "run/adapter", {"enable_lora": True, "max_lora_rank": 32})
    answers = generate(model, processor, dataset, batch_size=4, progress=False)
    assert answers == ["1 images"] * 7 + ["0 images", "2 images"] and answers.speed.together == 4
    assert [len(messages) for messages, _, _ in vllm.asked] == [4, 4, 1]
    assert vllm.asked[0][1]["temperature"] == 0 and vllm.asked[0][1]["max_tokens"] == 64
    assert vllm.asked[0][2] == ("tuned", 1, "run/adapter")
    with model.disable_adapter():
        generate(model, processor, dataset, progress=False)
    assert vllm.asked[-1][2] is None
    limits = {"limit_mm_per_prompt": {"image": 2}, "mm_processor_kwargs": served.pixel_limits(processor)}
    assert vllm.loaded == [{"model": "base/folder", "enable_lora": True, "max_lora_rank": 32} | limits]


def test_without_vllm_it_says_what_to_do(processor, dataset, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(
        ValueError, match="vLLM cannot be imported here .*pip install vllm.*name its address as `server`"
    ):
        generate(VllmEngine("base"), processor, dataset, progress=False)


def test_the_limits_of_the_processor_go_to_vllm():
    processor = load_processor(tiny_model("qwen3-vl"))
    set_max_pixels(processor, 12345)
    assert served.pixel_limits(processor)["max_pixels"] == 12345
    assert served.pixel_limits(load_processor(tiny_model("phi-3-vision"))) == {}
