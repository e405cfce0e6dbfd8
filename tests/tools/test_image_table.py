"""The table of what images cost, with small ones."""

import image_table
import pytest


@pytest.mark.slow
def test_every_way_of_storing_an_image_is_measured(tmp_path, capsys):
    image_table.main("0.01", tmp_path)
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[1].strip() for row in rows] == list(image_table.WAYS)
    assert {row[5].strip() for row in rows} == {"100 pixels wide"}
    assert len(list(tmp_path.iterdir())) == len(rows)


def test_what_is_measured_is_that_of_one_image(tmp_path):
    image_table.draw(300).save(tmp_path / "a.png")
    measured = image_table.measure(str(tmp_path / "a.png"))
    assert measured["decoded"] == 0.36 and 0 <= measured["beyond"] < 500 and measured["seconds"] > 0
