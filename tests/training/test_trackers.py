"""Trackers are taken or refused by name, and none asks for a login."""

import importlib.util

import pytest

from vlmhelpers.training.callbacks import report_to


@pytest.fixture
def installed(monkeypatch):
    """Lets every package seem installed, and hides this machine's keys."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("HOME", "/nowhere")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def test_none_needs_nothing(capsys):
    assert report_to("none") == "none" and capsys.readouterr().out == ""


def test_an_unknown_or_missing_tracker_is_named(monkeypatch):
    with pytest.raises(ValueError, match="REPORT_TO='mlflow': choose none, tensorboard, trackio, wandb"):
        report_to("mlflow")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install trackio"):
        report_to("trackio")


def test_wandb_without_a_key_records_offline(installed, monkeypatch, capsys):
    import os

    monkeypatch.setenv("WANDB_MODE", "")
    monkeypatch.delenv("WANDB_MODE")  # so that it is taken away again after the test
    assert report_to("wandb") == "wandb" and os.environ["WANDB_MODE"] == "offline"
    assert "offline" in capsys.readouterr().out


@pytest.mark.parametrize("by", ["variable", "netrc"])
def test_wandb_with_a_key_goes_online(installed, monkeypatch, tmp_path, capsys, by):
    import os

    monkeypatch.setenv("HOME", str(tmp_path))
    if by == "variable":
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    else:
        (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
        (tmp_path / ".netrc").chmod(0o600)
    assert report_to("wandb") == "wandb" and "WANDB_MODE" not in os.environ
    assert "key that was found" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_local_trackers_say_where_to_look(installed, capsys, name):
    assert report_to(name) == name and f"`{name} " in capsys.readouterr().out
