"""Texts of charts are no formulas, in fonts that have their characters."""

import matplotlib
import pytest
from matplotlib.font_manager import get_font

from vlmhelpers.common import chart
from vlmhelpers.common.chart import Chart

FOLDER = matplotlib.get_data_path() + "/fonts/ttf"
OTHER = f"{FOLDER}/STIXGeneral.ttf"  # stands in for a font that the machine has


def chart_of(text):
    figure = Chart(figsize=(2, 1))
    figure.text(0, 0, text)
    figure._repr_png_()
    return figure.texts[0].get_fontfamily()


@pytest.mark.filterwarnings("error")
def test_a_font_with_the_characters_is_found_and_what_none_has_is_said_once(monkeypatch, capsys):
    usual, other = (get_font(path).get_charmap().keys() for path in (f"{FOLDER}/DejaVuSans.ttf", OTHER))
    sign = next(chr(code) for code in sorted(other - usual) if chr(code).isprintable())
    searched = []
    monkeypatch.setattr(chart, "findSystemFonts", lambda: searched.append(1) or [OTHER])
    assert chart_of("$a_% plain") == ["sans-serif"] and not searched
    assert chart_of(f"with {sign}") == ["sans-serif", "STIXGeneral"]
    assert chart_of(f"\u4e2d {sign}") == chart_of(f"\u4e2d {sign}") == ["sans-serif", "STIXGeneral"]
    assert capsys.readouterr().out.count("no font here has \u4e2d, which a chart shows as boxes") == 1
