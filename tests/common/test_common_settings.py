"""Settings that describe themselves, convert what is typed, and say what is wrong in a sentence."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from vlmhelpers.common.settings import Setting, Settings


@dataclass(frozen=True)
class Sample(Settings):
    """Settings of each kind."""

    name: str = Field(min_length=1, description="of what")
    kind: Literal["a", "b"] = Field("a", description="which")
    bits: Literal[4, 16, None] = Field(None, description="how many")
    rate: float | None = Field(None, ge=0, description="how fast")
    rows: int = Field(3, ge=1, description="of data")
    flag: bool = Field(False, description="whether")
    choice: bool | None = Field(None, description="whether, if it is known")

    @model_validator(mode="after")
    def _check(self):
        if self.flag and self.kind == "b":
            raise ValueError("choose rows instead: with kind 'b' there is no flag")
        if self.rows == 13:
            raise ValueError("this brings bad luck")
        return self


def test_each_setting_describes_itself():
    assert list(Sample.described()) == "name kind bits rate rows flag choice".split()
    assert Sample.described()["name"] == Setting("name", str, (), False, None, True, "of what", "str")
    assert Sample.described()["kind"][1:5] == (str, ("a", "b"), False, "a")
    assert Sample.described()["bits"][1:6] == (int, (4, 16), True, None, False)
    assert Sample.described()["rate"] == Setting("rate", float, (), True, None, False, "how fast", "float | None")
    assert Sample.described()["flag"][1:5] == (bool, (), False, False)
    assert Sample.described()["choice"][1:5] == (bool, (), True, None)


@pytest.mark.parametrize(
    "name, text, value",
    [
        *((name, text, None) for name in ("bits", "rate", "choice") for text in ("none", "None", "null", "")),
        ("rate", "1e-4", 1e-4),
        ("rate", "3", 3.0),
        ("rows", "3.0", 3),
        ("rows", "1e3", 1000),
        ("bits", "4", 4),
        ("flag", "true", True),
        ("flag", "OFF", False),
        ("choice", "no", False),
        ("name", "none", "none"),
        ("name", "1e-4", "1e-4"),
        ("name", Path("a") / "b", str(Path("a") / "b")),
    ],
)
def test_a_text_is_what_it_says(name, text, value):
    found = getattr(Sample(**{"name": "x", name: text}), name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "name, value, sentence",
    [
        ("name", "", "name is '': it should have at least 1 character"),
        ("name", "a\0", r"name is 'a\x00': it should be without the NUL character"),
        ("kind", "c", "kind is 'c': it should be 'a' or 'b'"),
        ("kind", "none", "kind is 'none': it should be 'a' or 'b'"),
        ("bits", 5, "bits is 5: it should be 4, 16 or None"),
        ("rate", "fast", "rate is 'fast': it should be a valid number"),
        ("rate", "-1", "rate is -1.0: it should be greater than or equal to 0"),
        ("rate", "nan", "rate is nan: it should be a finite number"),
        ("rows", "1.5", "rows is 1.5: it should be a valid integer"),
        ("rows", "", "rows is '': it should be a valid integer"),
        ("flag", "perhaps", "flag is 'perhaps': it should be a valid boolean"),
        ("flag", 1, "flag is 1: it should be a valid boolean"),
        ("rwos", 1, "there is no setting 'rwos'. Did you mean 'rows'?"),
    ],
)
def test_what_is_wrong_is_a_sentence_by_the_name_of_the_setting(name, value, sentence):
    assert Sample.problems({"name": "x", name: value}) == {name: sentence}
    with pytest.raises(ValueError):
        Sample(**{"name": "x", name: value})


def test_a_number_too_large_to_be_written_is_named_all_the_same():
    assert Sample.problems({"name": "x", "rows": 10**5000}) == {
        "rows": "rows is a huge number: it should be a smaller number"
    }


def test_all_that_is_wrong_is_said_at_once():
    assert list(Sample.problems({"kind": "c", "rate": "fast"})) == ["name", "kind", "rate"]
    assert Sample.problems({})["name"] == "name is missing: add a line for it"
    assert Sample.problems({"name": "x"}) == {}


def test_what_does_not_go_together_is_said_at_the_first_setting_that_it_names():
    found = Sample.problems({"name": "x", "flag": "yes", "kind": "b"})
    assert found == {"rows": "choose rows instead: with kind 'b' there is no flag"}
    assert Sample.problems({"name": "x", "rows": 13}) == {"": "this brings bad luck"}
