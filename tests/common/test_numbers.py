"""Numbers as people write them, in texts; by hand."""

import pytest

from vlmhelpers.common.numbers import CONVENTIONS, find_numbers, is_price, parse_number, readings, shared_conventions
from vlmhelpers.evaluation import first_number


@pytest.mark.parametrize(
    "text, number",
    [
        ("1.299,00 €", 1299.0),
        ("12,50", 12.5),
        ("1 299 €", 1299.0),
        ("1\u202f299,50 €", 1299.5),
        ("1\u2009299", 1299.0),
        ("CHF 1\u2019299.50", 1299.5),
        ("1'299.50", 1299.5),
        ("$1,299.50", 1299.5),
        ("₹1,29,900.50", 129900.5),
        ("1 234.56", 1234.56),
        ("1.234.567,89", 1234567.89),
        ("1,299", 1299.0),
        ("1.299", 1.299),
        ("1.299 €", 1299.0),
        ("0,500", 0.5),
        ("€ 5", 5.0),
        ("USD1,299", 1299.0),
        ("-12,50 €", -12.5),
        ("-$5", -5.0),
        ("\u22125", -5.0),
        ("1e5", 100000.0),
        ("1.1E-3", 0.0011),
        (".5", 0.5),
        ("\u0661\u0662\u066b\u0665", 12.5),  # Arabic digits and point
        ("\uff11\uff12\uff0e\uff15", 12.5),  # of full width
    ],
)
def test_a_text_that_is_one_number(text, number):
    assert find_numbers(text) == [number] and first_number(text) == number == parse_number(text)


@pytest.mark.parametrize(
    "text, numbers",
    [
        ("12.5%", [12.5]),
        ("12,5 %", [12.5]),
        ("1/2", [0.5]),
        ("\xbd", [0.5]),
        ("1\xbd", [1.5]),
        ("-1 1/2", [-1.5]),
        ("1/0", []),
        ("3 for 2", [3.0, 2.0]),
        ("from $20 to $1,250.00.", [20.0, 1250.0]),
        ("5-7", [5.0, 7.0]),
        ("A-5", [5.0]),
        ("a phone 12 128 GB", [12.0, 128.0]),  # a plain space without a currency
        ("a phone for 1 128 kr", [1128.0]),
        ("1,2,3", [1.0, 2.0, 3.0]),
        ("1.5,2.5", [1.5, 2.5]),
        ("1 ,2 ,3", [1.0, 2.0, 3.0]),
        ("items ,50 pieces", [50.0]),
        ("1,-2", [1.0, -2.0]),
        ("5.-7.", [5.0, 7.0]),
        ("5,- to 7,-", [5.0, 7.0]),
        ("Rs. 1,299/-", [1299.0]),
        ("1.299 €/m²", [1299.0]),
        ("1.299 kg, 1 299 kg", [1.299, 1.0, 299.0]),
        ("iPhone XR 12 128", [12.0, 128.0]),
        ("1 299 pounds, 1 299 F", [1.0, 299.0, 1.0, 299.0]),  # weights and units
        ("1.299.00", []),  # a version
        ("2026-11-30", []),
        ("30.11.2026 12:30", []),
        ("11/30/26: 5 €", [5.0]),
        ("version 1.2.3", []),
        ("nan, inf, -inf, none", []),
        ("1e999", []),
        ("9" * 500, []),
        ("", []),
    ],
)
def test_numbers_in_texts(text, numbers):
    assert find_numbers(text) == numbers and parse_number(text) is None


@pytest.mark.parametrize("form, locale", CONVENTIONS.items())
def test_every_convention_reads_its_own_form(form, locale):
    assert readings(form)[form] == (1234567.8 if locale == "en_IN" else 1234.5)


def test_what_can_be_read_in_two_ways_goes_by_a_convention():
    assert first_number("1.299", "1.234,5") == 1299.0 and first_number("12.50", "1.234,5") == 12.5
    assert readings("1,299")["1,234.5"] == 1299.0 and readings("1,299")["1.234,5"] == 1.299
    assert shared_conventions(["1.299", "", "12,50 €", "hat"]) == ["1.234,5"]
    assert not shared_conventions(["12.50", "12,50"])


def test_prices_of_three_digits_after_a_point_go_by_the_others():
    assert shared_conventions(["1.299 €", "7"])[0] == "1.234,5" and shared_conventions(["1,299 €", "7"])[0] == "1,234.5"
    assert "1.234,5" not in shared_conventions(["$3.499", "$3.49"])
    assert not shared_conventions(["1.299 €", "$1,299"])  # each by its own


@pytest.mark.parametrize("text", ["nan", "inf", "1_0", "1/2", "2026-11-30", "5 6", "$5 €5", "5 kg", "x", ""])
def test_readings_are_of_one_number_alone(text):
    assert readings(text) == {} and not is_price(text)


@pytest.mark.parametrize("text", ["$5", "5 €", "5,-"])
def test_a_number_with_a_currency_is_a_price(text):
    assert {*readings(text).values()} == {5.0} and is_price(text) and not is_price("5")


def test_what_a_model_writes_that_does_not_end_is_as_many_numbers():
    assert find_numbers("100 " * 5000 + "units") == [100.0] * 5000
    assert find_numbers("1 000 000 000 000 000 000 €") == [1e18]
