"""Claims of a notebook: all are shown and recorded, then those that are asked must hold."""

import numpy as np
import pytest

from vlmhelpers.common import claims, records
from vlmhelpers.common.claims import check_claims

OF_SAMPLE = {"it learns": np.bool_(True), "it < forgets": False, "it packs": None}
OF_ANY = {"kept + rejected = read": True}


@pytest.fixture
def displayed(monkeypatch):
    """What a notebook would get to show."""
    found = []
    monkeypatch.setattr(records, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda data, **_: found.append(data))
    return found


def test_what_is_asked_of_the_tiny_model_fails_after_it_was_recorded(displayed):
    with pytest.raises(AssertionError) as error:
        check_claims(OF_SAMPLE, OF_ANY)
    assert str(error.value) == "1 of 4 claims not met:\nit < forgets"
    (data,) = displayed
    verdicts = {"it learns": "met", "it < forgets": "not met", "it packs": "not run", "kept + rejected = read": "met"}
    assert data[records.MIMETYPE] == {"name": claims.CLAIMS, "value": verdicts}
    assert "it &lt; forgets</td>" in data["text/html"] and "it < forgets: not met\n" in data["text/plain"]


def test_of_another_model_only_what_holds_for_any_is_asked(capsys):
    check_claims(OF_SAMPLE, OF_ANY, is_sample=False)
    assert capsys.readouterr().out == (
        "it learns: not asked of this model (holds)\nit < forgets: not asked of this model (does not hold)\n"
        "it packs: not run\nkept + rejected = read: met\n"
    )
    with pytest.raises(AssertionError, match="claims not met:\nkept"):
        check_claims({}, {"kept + rejected = read": np.bool_(False), "other": True}, is_sample=False)


def test_a_number_is_no_claim():
    with pytest.raises(TypeError, match="claim 'accuracy': pass True, False or None, not 0.97"):
        check_claims({"accuracy": np.float64(0.97)})
