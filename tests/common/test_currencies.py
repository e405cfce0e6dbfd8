"""Prices of the world: by hand, and as the locales of Babel write them."""

import unicodedata

import pytest
from babel import Locale
from babel.localedata import locale_identifiers
from babel.numbers import format_currency, get_currency_precision, get_currency_symbol, get_territory_currencies

from vlmhelpers.common.numbers import find_numbers, parse_number

PRICES = {
    1299.0: (
        "1.299,- €; 1.299,-; 1.299,–; 1.299,-- EUR; € 1.299,-; 1299.-; 1,299.00 €; 1.299,00 €; 1 299,00 €; "
        "1.299 Euro; 1.299,00 Euros; EUR 1.299,00; 1.299 euro; 1 299 euros; 1 299 eura; 1.299 ευρώ; 1 299 евро; "
        "Euro 1.299; 1299 EURO; $1,299; US$ 1.299; USD1,299; 1 299 dollars; 1,299 US dollars; 1.299 US-Dollar; "
        "1.299 dólares; CA$1,299; NT$1,299; R$1.299; R$ 1.299,00; 1.299 reais; $ 1.299 CLP; 1.299 pesos; S/1,299.00; "
        "S/ 1.299; B/.1,299.00; Gs. 1.299; R 1 299,00; R1 299.00; R1.299; R1,299.00; 1 299 rand; Ksh 1,299; KSh1,299; "
        "TSh 1,299; GH₵1,299; ₦1,299.00; 1 299 F CFA; 1.299 FCFA; 1 299 DA; 1 299,00 Dh; Rs. 1,299; Rs.1,299.00; "
        "₹1,299; 1,299 rupees; Rp1.299; Rp 1.299,00; 1.299đ; 1.299 đồng; 1.299 VND; ₫1,299; RM1,299.00; ฿1,299; "
        "1,299 บาท; ¥1,299; 1,299円; 1,299元; RMB 1,299; 1,299원; CHF 1'299.00; CHF 1’299.–; Fr. 1'299.-; SFr. 1'299; "
        "1'299 Franken; 1 299:-; 1 299,- Kč; 1 299 Kč; 1 299 korun; kr. 1.299,00; 1.299 kr.; kr 1 299; 1 299 kronor; "
        "1.299 krónur; 1 299 zł; 1 299,00 złotych; 1 299 Ft; 1.299 lei; 1.299 RON; 1 299 лв.; 1.299 дин.; "
        "1.299 dinara; 1.299 KM; 1 299 руб.; 1 299 рублей; 1 299 р.; 1 299р; 1 299 ₽; 1 299 грн; 1 299 гривень; "
        "1 299 ₸; 1 299 тенге; 1.299 TL; ₺1.299; 1.299,00 ₺; ₪1,299; ١٬٢٩٩ ر.س; $1.299.00; 1,299,00 €"
    ),
    4500.0: "4.500 TL; 4 500 Kč; 4.500 COP; KD 4,500; 4 500 DT",
    15000.0: "Rp15.000; 15.000 đ; 15 000 FCFA; ₩15,000",
    1299000.0: "1.299.000đ; Rp 1.299.000; 1.299.000 pesos; ₲ 1.299.000; 1 299 000 сўм; ₹12,99,000",
    0.5: ",50 €; €,50; € ,50; ,50; .50; $.50; 0,50 €",
    1.25: (
        "KWD 1.250; 1.250 KWD; 1.250 BHD; OMR 1.250; JD 1.250; 1.250 د.ك; 1,250 DT; 1,250 TND; 1.250 TND; 1.250 dinars"
    ),
    -5.0: "-R$5; -US$ 5,00; -5,00 €; -$5; € -5; -5,-",
}
AMBIGUOUS = {"D", "E", "G", "L", "Le", "Db", "den"}  # letters that are units, too, and articles


@pytest.mark.parametrize(
    "price, number", [(price.strip(), number) for number, prices in PRICES.items() for price in prices.split(";")]
)
def test_a_price(price, number):
    assert find_numbers(price) == [number] and parse_number(price) == number
    assert find_numbers(f"It costs {price} today.") == [number] or price == ",50"


def currencies_at_home():
    for name in locale_identifiers():
        locale = Locale.parse(name)
        if locale.territory and locale.territory.isalpha():
            for currency in get_territory_currencies(locale.territory)[:1]:
                yield locale, currency


@pytest.mark.slow
@pytest.mark.parametrize("amount", [0.5, 12.5, 1299, 1299.5, 1234567.5])
def test_prices_of_all_locales(amount):
    for locale, currency in currencies_at_home():
        expected = float(amount if get_currency_precision(currency) else round(amount))
        written = format_currency(expected, currency, locale=locale)
        plain = written.replace("\xa0", " ").replace("\u202f", " ")
        assert find_numbers(written) == [expected], (locale, written)
        assert find_numbers(plain) == [expected] or get_currency_symbol(currency, locale) in AMBIGUOUS, (locale, plain)


@pytest.mark.slow
def test_whole_prices_of_all_locales():
    wrong = set()
    for locale, currency in currencies_at_home():
        pattern = locale.currency_formats["standard"].pattern.replace("0.00", "0")
        written = format_currency(1299, currency, format=pattern, locale=locale, currency_digits=False)
        wrong |= {currency} if find_numbers(written) != [1299.0] else set()
    assert wrong == {"MDL", "LYD", "TND"}  # 1.299 L may be liters, and both dinars have three decimals


def test_every_sign_of_unicode_is_a_currency():
    signs = [chr(code) for code in range(0x10000) if unicodedata.category(chr(code)) == "Sc"]
    assert [sign for sign in signs if find_numbers(f"1.299 {sign}") != [1299.0]] == []
