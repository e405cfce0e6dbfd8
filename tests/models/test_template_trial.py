"""Chat templates of others: those that loop or multiply are refused when a processor is loaded, quickly enough."""

import shutil

import pytest

from vlmhelpers.common import processes
from vlmhelpers.families import TINY_BASES, tiny_model
from vlmhelpers.models import template_trial
from vlmhelpers.models.loading import load_model, load_processor

LOOP = "{% for a in range(9999) %}" * 4 + "{% endfor %}" * 4


@pytest.fixture
def with_template(tmp_path):
    """A folder with a model whose chat template is another."""

    def make(text):
        folder = shutil.copytree(tiny_model("qwen3-vl"), tmp_path / "received")
        (folder / "chat_template.jinja").write_text(text)
        return folder

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    "template, reason",
    [
        (LOOP, "cannot be rendered in"),
        ("{{ 'x' * 9999999999 }}", "cannot be rendered in"),
        ("{% if messages | length > 5 %}{{ 'x' * 9999999999 }}{% endif %}", "cannot be rendered in"),
        (
            "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "cannot be rend",
        ),
        ("{% if messages[0].content | length > 1 %}{{ 'x' * 9000000 }}{% endif %}", "makes 9,000,000 characters"),
    ],
)
def test_templates_without_bounds_are_refused(template, reason, with_template):
    folder = with_template(template)
    with pytest.raises(ValueError, match=f"received: its chat template {reason}"):
        load_processor(folder)


@pytest.mark.slow
def test_a_template_that_refuses_conversations_is_tried_once(with_template, monkeypatch):
    folder = with_template("{% if messages | length > 1 %}{{ raise_exception('too long') }}{% endif %}{{ 1 / 0 }}")
    load_processor(folder)
    monkeypatch.setattr(template_trial, "run_trial", lambda *_, **__: pytest.fail("was tried again"))
    load_model(folder, bits=16)


@pytest.mark.parametrize("family", TINY_BASES)
def test_templates_of_the_tiny_bases_need_no_trial(family, monkeypatch):
    monkeypatch.setattr(template_trial, "run_trial", lambda *_, **__: pytest.fail("was tried"))
    load_processor(tiny_model(family))


def test_a_trial_that_fails_by_itself_blames_no_template(with_template, monkeypatch):
    failed = processes.run_python(["-m", "no_module"])
    monkeypatch.setattr(processes, "run_python", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="the trial of a chat template failed: .*no_module"):
        load_processor(with_template("not tried before"))


def test_a_template_of_a_wrong_type(with_template):
    folder = with_template("")
    processor = load_processor(tiny_model("qwen3-vl"))
    processor.chat_template = {"default": ["text"]}
    with pytest.raises(ValueError, match="its chat template is a list"):
        template_trial.check_template(processor, folder)
