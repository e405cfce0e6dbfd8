"""Charts of a run: every value in its place, the last one always, and what cannot be drawn left out."""

import base64
import math
import re
from xml.etree import ElementTree

from vlmhelpers.studio.chart import Line, as_image, draw


def svg(elements, *lines, last_step=10, log=False, title="Loss"):
    found = elements(draw(title, [Line(*line) for line in lines], last_step, "step", log))
    return found.tags[0][1], [places(tag["points"]) for name, tag in found.tags if name == "polyline"]


def places(text):
    return [tuple(map(float, corner.split(","))) for corner in text.split()]


def test_a_line_goes_through_its_values(elements):
    attributes, [corners] = svg(elements, ("training", {0: 4.0, 5: 2.0, 10: 0.0}))
    (left, top), (middle, half), (right, bottom) = corners
    assert left < middle < right and math.isclose(middle, (left + right) / 2)
    assert top < half < bottom and math.isclose(half, (top + bottom) / 2)
    assert attributes["data-last-step"] == "10" and attributes["data-last-value"] == "0.0"
    assert attributes["role"] == "img" and attributes["aria-label"] == "Loss: training 0"


def test_a_logarithmic_scale_shows_what_is_above_zero(elements):
    points = {1: 1000.0, 2: 0.0, 3: 10.0, 4: -5.0, 5: 0.1}
    attributes, [corners] = svg(elements, ("training", points), log=True)
    assert len(corners) == 3 and attributes["data-last-step"] == "5"
    assert math.isclose(corners[1][1], (corners[0][1] + corners[2][1]) / 2, abs_tol=0.11)
    assert draw("Loss", [Line("training", {1: 0.0, 2: -1.0})], 2, "step", log=True) == ""


def test_thousands_of_points_are_thinned_and_the_last_stays(elements):
    for number in (599, 600, 601, 1201, 20_000):
        attributes, [corners] = svg(elements, ("training", {n: 1 / n for n in range(1, number + 1)}), last_step=number)
        assert min(number, 300) <= len(corners) <= 601 and attributes["data-last-step"] == str(number)


def test_what_is_no_number_is_left_out(elements):
    points = {1: 1.0, 2: math.nan, 3: math.inf, 4: -math.inf, 5: 2.0}
    attributes, [corners] = svg(elements, ("training", points))
    assert len(corners) == 2 and "nan" not in str(corners) and attributes["data-last-value"] == "2.0"


def test_one_point_is_seen_and_none_is_nothing(elements):
    for value in (0.0, -1.0, 3.0, 1e-300, 1e300):
        found = elements(draw("Loss", [Line("training", {7: value})], 10, "step"))
        assert [name for name, _ in found.tags].count("circle") == 1 and not re.search("nan|inf", str(found.tags))
    assert draw("Loss", [Line("training", {})], 10, "step") == draw("Loss", [], 0, "step") == ""
    assert draw("Loss", [Line("training", {1: math.nan})], 10, "step") == ""


def test_two_lines_differ_in_more_than_color(elements):
    found = elements(
        draw("Loss", [Line("training", {1: 2.0, 2: 1.0}), Line("validation", {2: 1.5, 9: 1.25})], 4, "step")
    )
    lines = [tag for name, tag in found.tags if name == "polyline"]
    assert lines[0]["stroke-dasharray"] != lines[1]["stroke-dasharray"]
    assert [name for name, _ in found.tags].count("circle") == 2  # marks of the second
    assert found.tags[0][1]["aria-label"] == "Loss: training 1, validation 1.25" and "step 9" in found.text
    assert found.text.count("training") == found.text.count("validation") == 1


def test_names_are_never_taken_for_html(elements, evil):
    found = elements(draw(evil, [Line(evil, {1: 1.0}), Line(evil, {1: 2.0})], 1, evil))
    assert {name for name, _ in found.tags} <= {"svg", "text", "line", "polyline", "circle"}
    assert found.text.count(evil) == 4


def test_a_chart_is_an_image_where_svg_is_not_shown():
    drawn = draw("Loss", [Line("training", {1: 2.0, 2: 1.0})], 2, "step")
    image = as_image(drawn)
    assert image.startswith('<img alt="" src="data:image/svg+xml;base64,') and "<svg" not in image
    inside = ElementTree.fromstring(base64.b64decode(image.split("base64,")[1].split('"')[0]))
    assert inside.tag == "{http://www.w3.org/2000/svg}svg" and inside.get("data-last-value") == "1.0"
