"""`transformers serve` answers from a merged folder as `generate` does, to OpenAI's own client; what it refuses."""

import base64
import io
import json
from importlib.metadata import version

import openai
import pytest
import requests
import torch
from quick_adapter import sample_rows, train_adapter

from vlmhelpers.data.schema import assistant, user
from vlmhelpers.export import serving
from vlmhelpers.export.adapters import merge, save_adapter
from vlmhelpers.export.model_server import serve_model
from vlmhelpers.families import TINY_BASES, family_of, tiny_model
from vlmhelpers.inference.generation import generate
from vlmhelpers.models.loading import load_model

pytestmark = pytest.mark.slow

TAKEN = [name for name, family in TINY_BASES.items() if not family.not_by_transformers_serve]
GREEDY = {"temperature": 0, "frequency_penalty": 0, "max_tokens": 64}


class Asked:
    """A served model: `ask` sends it messages of our schema with their images, as a client of OpenAI's does."""

    def __init__(self, server, folder, cache):
        self.server, self.cache = server, cache
        # One more attempt, as an answer 500 ends the connection.
        self.client = openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=1)
        self.model, self.processor = load_model(folder, bits=16)

    def ask(self, messages, images=(), **options):
        images = iter(images)
        messages = [m | {"content": [openai_part(part, images) for part in m["content"]]} for m in messages]
        return self.client.chat.completions.create(model=self.server.model, messages=messages, **options)

    def answer(self, messages, images=(), **options):
        return self.ask(messages, images, **(GREEDY | options)).choices[0].message.content.strip()

    def generated(self, rows, **options):
        return list(generate(self.model, self.processor, rows, progress=False, batch_size=1, **options))


def openai_part(part, images):
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    next(images).save(buffer := io.BytesIO(), "PNG")
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": uri}}


@pytest.fixture(scope="module")
def rows(rows_of):
    return sample_rows(rows_of)


@pytest.fixture(scope="module", params=TAKEN)
def served(request, rows, tmp_path_factory):
    """A merged model of each family that is served, one after the other.

    It has the defaults of a published model that samples, and there is no cache of the Hub on this machine.
    """
    folder = tmp_path_factory.mktemp(request.param)
    adapter = save_adapter(*train_adapter(request.param, rows), folder / "adapter")
    merged = merge(adapter, folder / "merged", dtype=torch.float32)
    file = merged / "generation_config.json"
    samples = {"do_sample": True, "temperature": 3.0, "repetition_penalty": 9.0}
    file.write_text(json.dumps(json.loads(file.read_text()) | samples))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_CACHE", str(folder / "cache"))
        with serve_model(merged) as server:
            yield Asked(server, merged, folder / "cache")


def test_an_image_as_a_data_uri_gets_the_answer_of_generate(served, rows):
    answers = [served.answer(row["messages"][:-1], row["images"]) for row in rows]
    assert answers == served.generated(rows) and len(set(answers)) > 1


def test_a_second_turn_gets_the_answer_of_generate(served, rows):
    row = rows[0]
    first = served.answer(row["messages"][:-1], row["images"])
    turns = [*row["messages"][:-1], assistant(first), user("What color is it?")]
    conversation = rows.select([0]).map(lambda _: {"messages": [*turns, assistant("")]})
    assert served.answer(turns, row["images"]) == served.generated(conversation)[0] != ""


def test_a_question_without_an_image_gets_the_answer_of_generate(served, rows_of):
    question = rows_of([("What is it?", "", [])])
    assert served.answer([user("What is it?")]) == served.generated(question)[0]


def test_a_stream_is_the_answer_in_pieces_and_stops_where_the_client_does(served, rows):
    messages, images = rows[0]["messages"][:-1], rows[0]["images"]
    pieces = [chunk.choices[0].delta.content or "" for chunk in served.ask(messages, images, stream=True, **GREEDY)]
    answer = served.answer(messages, images)
    assert "".join(pieces).strip() == answer and len(list(filter(None, pieces))) > 1
    stop, begun = answer.split()[-1], ""
    with served.ask(messages, images, stream=True, **GREEDY) as stream:
        for chunk in stream:
            begun += chunk.choices[0].delta.content or ""
            if stop in begun:
                break
    assert begun.partition(stop)[0].strip() == answer.partition(stop)[0].strip()
    assert served.answer(messages, images) == answer  # whatever became of the broken stream


def test_max_tokens_cuts_as_max_new_tokens_does(served, rows):
    found = served.ask(rows[0]["messages"][:-1], rows[0]["images"], **GREEDY | {"max_tokens": 2})
    choice = found.choices[0]
    assert (choice.finish_reason, found.usage.completion_tokens) == ("length", 2)
    assert choice.message.content.strip() == served.generated(rows.select([0]), max_new_tokens=2)[0]


def test_what_docs_serving_says_that_it_does_not_do(served, rows):
    """Where one of these fails, the server has learned it: docs/serving.md has to say so."""
    messages, images = rows[0]["messages"][:-1], rows[0]["images"]
    assert version("transformers").startswith("5.17.")
    with pytest.raises(openai.InternalServerError):  # it takes the processor for a tokenizer
        served.ask(messages, images, stop=["\n"], **GREEDY)
    answer = served.answer(messages, images)
    cut = {"temperature": 0, "frequency_penalty": 0, "max_completion_tokens": 1}
    assert served.ask(messages, images, **cut).choices[0].message.content.strip() == answer
    with pytest.raises(openai.UnprocessableEntityError):
        served.ask(messages, images, extra_body={"top_k": 1})
    with pytest.raises(openai.BadRequestError):
        served.client.chat.completions.create(model="tuned", messages=[{"role": "user", "content": "Hello"}])


def test_the_penalty_of_the_folder_counts_unless_the_client_says_otherwise(served, rows):
    """Where images are no tokens of the vocabulary, it fails: their token has no score that could be lowered."""
    messages, images = rows[0]["messages"][:-1], rows[0]["images"]
    if family_of(served.processor).images_in_sequence:
        assert served.answer(messages, images, frequency_penalty=None) != served.answer(messages, images)
    else:
        with pytest.raises(openai.InternalServerError):
            served.answer(messages, images, frequency_penalty=None)


def test_the_list_of_models_needs_a_cache_of_the_hub_and_lacks_the_one_that_is_served(served):
    with pytest.raises(openai.InternalServerError):
        served.client.models.list()
    served.cache.mkdir()
    assert served.client.models.list().data == []


def test_what_a_family_cannot_is_found_out_by_the_server_itself(monkeypatch):
    refused = [name for name in TINY_BASES if name not in TAKEN]
    assert refused == ["phi-3-vision"]
    for name in refused:
        with pytest.raises(ValueError, match="transformers serve does not serve this model: .*phi3_v.*generate"):
            serving.serve_command(tiny_model(name))
    monkeypatch.setattr(serving, "_refuse", lambda *_: None)
    with pytest.raises(RuntimeError, match="has ended(.|\n)*`phi3_v` but Transformers does not recognize"):
        serve_model(tiny_model("phi-3-vision")).__enter__()


def test_the_server_ends_with_the_block_and_says_why_it_does_not_come():
    with serve_model(tiny_model("qwen2.5-vl")) as server:
        address = server.base_url.replace("/v1", "/health")
        assert requests.get(address, timeout=10).json() == {"status": "ok"}
    with pytest.raises(requests.ConnectionError):
        requests.get(address, timeout=10)
    with pytest.raises(TimeoutError, match="after 0.01 seconds"):
        serve_model(tiny_model("qwen2.5-vl"), seconds=0.01).__enter__()


def test_without_its_packages_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("vlmhelpers.export.model_server.find_spec", lambda name: name != "uvicorn")
    with pytest.raises(ImportError, match="needs uvicorn: pip install fastapi openai uvicorn"):
        serve_model(tiny_model("qwen2.5-vl")).__enter__()
