"""Currencies as people write them beside a number: patterns for `re`."""

import re

from babel.numbers import get_currency_precision, list_currencies

# What Babel's locales and shops write; no letter alone (a unit, too), no articles (Le, den), no weights (pound)
_SYMBOLS = (
    r"Afl Ar B/ BD Br Bs(?:\.S)? CF CFPF Cg DA DT Dhs? FBu FC FCFA FCFP FG F\sCFA Fdj Ft GHS? Gs JD KD KM Kč K[Ss]?h Kz"
    r" LS Lekë MK MTn NAf Nfk Nu RF RM RMB RO Rf Rp Rs S/ S?Frs? SR TL T[Ss]h UM U[Ss]h VN[DĐ] VT kr zł soʻm [Đđ] р"
    r" руб грн тг лв ден дин КМ сом сўм 元 円 圓 원 บาท රු नेरू रु ብር ރ د\.[أإبتجعكلم] ج\.[مس] ر\.[سعقي] ل\.[سل] أ\.م"
)
_NAMES = (
    r"eur usd gbp chf rs euros? eura ευρώ евро (?:us[-\s])?dollars? d[oó]lar(?:es)? доллар(?:а|ов)? рубл(?:ь|я|ей|ів)"
    r" грив(?:на|ни|ні|ен|ень) тенге лева rubel rubles? rupees? rupiah rupien rand reais pesos? soles z[lł]ot(?:y|ych)"
    r" kron(?:e|en|er|a|or) krónur korun[ay]? forint lei yen yuan baht ringgit dong đồng naira cedis? dirhams? liras?"
    r" lirası shillings? fran(?:cs?|cos|chi|ken) dinar[ais]? riy?als? دينار درهم ريال ریال جنيه"
)
_LETTER = r"[^\W\d_]"


def _any_of(words, flags=""):
    return rf"(?<!{_LETTER})(?{flags}:{'|'.join(words)})(?!{_LETTER})"


_SIGN = rf"(?:(?<!{_LETTER}){_LETTER}{{1,3}})?[$¢-¥֏؋߾߿৲৳৻૱௹฿៛₠-⃏꠸﷼﹩＄￠￡￥￦]"  # US$, too
CURRENCY = rf"(?:{_SIGN}|{_any_of(list_currencies())}|{_any_of(_SYMBOLS.split())}\.?|{_any_of(_NAMES.split(), 'i')}\.?)"
_NO_CENTS = r"[,.:][-–—]{1,2}(?![\w.,-])"  # 1.299,-
BEFORE = rf"(?:{CURRENCY}|(?<!\w)R)"  # in South Africa; after a number, R is anything
AFTER = rf"(?:(?:{_NO_CENTS})?\s?{CURRENCY}|{_NO_CENTS})"

_IN_THREE = [code for code in list_currencies() if get_currency_precision(code) == 3]
_COMMA = ["TND", "LYD", "DT", r"د\.[تل]"]
_WITH_COMMA = re.compile(_any_of(_COMMA))
_THOUSANDTHS = re.compile(_any_of([*_IN_THREE, *_COMMA, *r"BD JD KD RO dinars? rials? دينار د\.[أبك] ر\.ع".split()]))


def thousandths_of(currency: str) -> str:
    """The points that set off thousandths beside a currency as it is written: "1.250 KWD", "1,250 DT"; else "".

    Dinars and rials without a country are such currencies, though some have cents.
    """
    if not _THOUSANDTHS.search(currency):
        return ""
    return ".," if _WITH_COMMA.search(currency) else "."
