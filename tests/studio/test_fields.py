"""Controls: what a setting is, as a widget of ipywidgets 7 and 8, in any language, refused or hidden."""

import ast
from pathlib import Path
from typing import Literal

import ipywidgets as widgets
import pytest
from pydantic import Field as Described
from pydantic.dataclasses import dataclass

from vlmhelpers import studio
from vlmhelpers.common.settings import Settings
from vlmhelpers.studio.fields import Field, Form
from vlmhelpers.studio.texts import LANGUAGES, texts

# The widgets and their traits that ipywidgets 7.7.1 and 8.1 share; from each list what the panel uses.
BOTH = {
    **dict.fromkeys(("HTML", "VBox", "HBox"), {"layout"}),
    "GridBox": {"layout"},
    "Layout": {"align_items", "display", "flex_flow", "grid_gap", "grid_template_columns", "justify_content", "width"},
    "Button": {"button_style", "layout"},
    "Checkbox": {"indent", "layout"},
    "Combobox": {"continuous_update", "ensure_option", "layout"},
    "Dropdown": {"layout", "options"},
    "FileUpload": {"accept", "multiple"},
    "FloatProgress": {"layout", "max", "min"},
    "Play": {"interval", "layout", "max", "min"},
    **dict.fromkeys(("Tab", "Accordion"), {"selected_index"}),
    "Text": {"continuous_update", "layout", "value"},
    "Textarea": {"layout", "rows"},
    "Widget": set(),  # named in annotations only
}
# What only one of them has, or has for fewer widgets.
ONE = {"titles", "tooltip", "tabbable", "focus", "blur", "description_allow_html", "playing", "_playing", "repeat"}
ONE |= {"overflow_x", "overflow_y", "border_top", "border_bottom", "border_left", "border_right", "on_displayed"}


@dataclass(frozen=True)
class Sample(Settings):
    rate: float | None = Described(None, ge=0, description="")
    rows: int = Described(3, description="")
    kind: Literal["a", "b"] = Described("a", description="")
    bits: Literal[4, 16, None] = Described(None, description="")
    flag: bool = Described(False, description="")
    choice: bool | None = Described(None, description="")
    cache: Literal["none", "pixels"] = Described("none", description="")
    name: str | None = Described(None, description="")


@pytest.fixture
def form():
    form = Form(Field(setting) for setting in Sample.described().values())
    form.fill(vars(Sample()))
    return form


def test_a_setting_is_shown_by_the_control_of_its_kind(form):
    kinds = {name: type(field.control) for name, field in form.fields.items()}
    typed = dict.fromkeys(("rate", "rows", "name"), widgets.Text)
    assert kinds == dict.fromkeys(kinds, widgets.Dropdown) | typed | {"flag": widgets.Checkbox}
    assert all("studio-" + name in field.control._dom_classes for name, field in form.fields.items())


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"rate": 0.1 + 0.2, "rows": -(2**60), "kind": "b", "bits": 4, "flag": True, "choice": True, "cache": "pixels"},
        {"rate": 5e-324, "choice": False, "bits": 16, "name": 'a "b"\\ <c>'},
        {"rate": 1e22, "name": "ÄÖ 名前"},
    ],
)
def test_values_come_back_and_a_dropdown_never_holds_none(form, values):
    for locale in ("en", "zh", "en"):
        form.fill(vars(Sample(**values)))
        assert Sample(**form.values) == Sample(**values)
        for field in form.fields.values():
            field._texts = texts(locale)
            if isinstance(field.control, widgets.Dropdown):
                field._list(field.value)
                assert all(isinstance(value, str) for _, value in field.control.options)
        assert None not in form.values.values() and Sample(**form.values) == Sample(**values)


def test_a_value_that_is_no_choice_is_there_to_be_refused(form):
    field = form.fields["kind"]
    field.value = "c"
    assert form.values["kind"] == "c" and list(Sample.problems(form.values)) == ["kind"]
    field.value = "b"
    assert [value for _, value in field.control.options] == ["a", "b"]
    with pytest.raises(ValueError, match="flag is 'c': choose True or False"):
        form.fields["flag"].value = "c"


def test_a_change_is_told_once_and_what_is_no_change_is_not(form):
    told = []
    for field in form.fields.values():
        field.on_change(lambda name=field.name: told.append(name))
    form.fill(vars(Sample()))
    assert told == []
    form.fields["bits"].value = 4
    form.fields["bits"].value = "4"
    form.fields["bits"].offer(["4", "8"])
    form.fields["bits"].control.value = "8"
    form.fields["flag"].control.value = True
    assert told == ["bits", "bits", "flag"]


def test_what_is_offered_changes_and_what_was_typed_stays():
    field = Field(Sample.described()["name"], free=True)
    field.value = "typed"
    field.offer(["a", "b"])
    assert field.value == "typed" and field.control.options == ("a", "b")
    field.offer([])
    assert field.value == "typed" and field.control.options == ()


def test_a_problem_is_shown_as_text(form, elements, evil):
    field = form.fields["rate"]
    field.refuse(evil)
    found = elements(field._problem.value)
    assert evil in found.text and [tag for tag, _ in found.tags] == ["div"]
    assert "studio-refused" in field.widget._dom_classes
    field.refuse(None)
    assert field._problem.value == "" and "studio-refused" not in field.widget._dom_classes
    field.show(False)
    field.show(True)
    assert field.widget.layout.display is None


@pytest.mark.parametrize("group, name, value", [("chatting", "temperature", "hot"), ("evaluating", "rows", "0")])
def test_a_form_of_a_step_refuses_at_the_control(group, name, value):
    form = Form.of(group)
    assert not any(field._problem.value for field in form.fields.values())
    form.fields[name].control.value = value
    assert [other for other, field in form.fields.items() if field._problem.value] == [name]
    form.fields[name].control.value = ""
    form.fields[name].control.value = "1"
    assert not any(field._problem.value for field in form.fields.values())


@pytest.mark.parametrize("group", ["chatting", "evaluating", "exporting", "pushing"])
def test_a_form_of_a_step_is_spoken_in_all_languages_and_keeps_its_values(group):
    form = Form.of(group)
    before = form.values
    for locale in LANGUAGES:
        form.speak(texts(locale))
        assert all(field.control.description for field in form.fields.values()) and form.values == before


def test_the_panel_uses_only_what_ipywidgets_7_and_8_share():
    for path in Path(studio.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                assert node.attr not in ONE, (path.name, node.lineno, node.attr)
                if isinstance(node.value, ast.Name) and node.value.id == "widgets":
                    assert node.attr in BOTH, (path.name, node.lineno, node.attr)
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("widgets."):
                used = {keyword.arg for keyword in node.keywords}
                assert used <= BOTH[node.func.attr], (path.name, node.lineno, used)
