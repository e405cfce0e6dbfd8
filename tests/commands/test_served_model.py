"""A run that vLLM serves: found at the server by its folder, asked with its base, refused where vLLM cannot."""

import json

import pytest
from openai_server import openai_server

from vlmhelpers.commands.evaluating import evaluate_run
from vlmhelpers.commands.generating import generate_answers
from vlmhelpers.commands.served import use_model
from vlmhelpers.commands.settings import Evaluating, Generating
from vlmhelpers.commands.tuned import load_tuned
from vlmhelpers.inference import served
from vlmhelpers.inference.served import VllmEngine

pytestmark = pytest.mark.slow


@pytest.fixture
def server(run, monkeypatch):
    """Serves the run's adapter and its base, as vLLM lists them, to whoever has the key."""
    monkeypatch.setattr(served, "_BACKOFF", 0.01)
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    base = str(load_tuned(run).base)
    cards = [{"id": "base", "root": base, "parent": None}]
    cards.append({"id": "tuned", "root": str(run / "adapter"), "parent": "base"})
    with openai_server(cards, "secret", lambda body: f"I am {body['model']}.") as found:
        yield found


def test_a_run_and_its_base_are_evaluated_at_a_server(run, server):
    settings = Evaluating(model=str(run), engine="vllm", server=f"{server.address}/", ablation=True)
    result = evaluate_run(settings)
    assert result.answers == {"base": ["I am base."] * 6, "tuned": ["I am tuned."] * 6}
    assert str(result.speeds["tuned"]).endswith(f"up to 32 together on vLLM at {server.address}")
    assert result.ablation.same == 1 and len(server.requests) == 5 * 6
    server.requests.clear()
    assert evaluate_run(settings).answers == result.answers and len(server.requests) == 3 * 6  # only the ablation


def test_rows_and_a_prompt_are_answered_at_a_server(run, server, tmp_path):
    settings = {"model": str(run), "engine": "vllm", "server": server.address, "max_new_tokens": 9}
    found = generate_answers(Generating(**settings, output=str(tmp_path / "a.jsonl")))
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["answer"] for line in lines] == found.answers == ["I am tuned."] * 6
    (tmp_path / "mine.jsonl").write_text("mine")
    with pytest.raises(FileExistsError, match="mine.jsonl is not from an earlier call: name another output"):
        generate_answers(Generating(**settings, output=str(tmp_path / "mine.jsonl")))
    named = Generating(**settings, prompt="Who?", served_as="base")
    assert generate_answers(named).answers == ["I am base."]


def test_a_base_that_the_server_does_not_have_is_not_asked(run, server):
    server.cards[:] = [server.cards[1] | {"parent": None}]
    settings = {"model": str(run), "engine": "vllm", "server": server.address}
    with pytest.raises(ValueError, match="does not say of which model tuned was made: ask without the base"):
        evaluate_run(Evaluating(**settings))
    assert not server.requests and list(evaluate_run(Evaluating(**settings, base=False)).answers) == ["tuned"]


def test_what_the_server_does_not_have_is_told_with_the_command_to_start_it(run, server):
    settings = {"model": str(run), "engine": "vllm", "server": server.address}
    with pytest.raises(ValueError, match="serves base, tuned, and none is other: .* vllm serve .* --enable-lora"):
        generate_answers(Generating(**settings, served_as="other"))
    (run / "adapter").rename(run.parent / "elsewhere")
    settings["model"] = str(run.parent / "elsewhere")
    with pytest.raises(ValueError, match="none is .*elsewhere: name one with served_as"):
        generate_answers(Generating(**settings, prompt="Who?"))
    with pytest.raises(OSError, match="the server: .* gives no answer: .*Start it with: vllm serve"):
        generate_answers(Generating(**settings | {"server": "http://127.0.0.1:9/v1"}, prompt="Who?"))


def test_what_vllm_does_not_serve_is_refused_before_anything_is_asked(run, server):
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    (run / "adapter" / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    for address in (server.address, None):
        with pytest.raises(ValueError, match="vLLM does not serve the adapter in .*DoRA.*Merge it"):
            evaluate_run(Evaluating(model=str(run), engine="vllm", server=address))
    assert not server.requests
    with pytest.raises(ValueError, match="vLLM does not serve this model"):
        generate_answers(Generating(model="llama-3.2-vision", prompt="Who?", engine="vllm", server=server.address))
    with pytest.raises(ValueError, match="server and served_as are for engine=vllm"):
        generate_answers(Generating(model=str(run), prompt="Who?", server=server.address))


def test_the_engine_in_this_process_gets_the_base_the_adapter_and_its_rank(run):
    model = use_model(Generating(model=str(run), engine="vllm")).model
    assert isinstance(model, VllmEngine) and model.arguments == {"enable_lora": True, "max_lora_rank": 8}
    assert (model.model, model.adapter) == (str(load_tuned(run).base), str(run / "adapter"))
