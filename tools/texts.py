"""The words of the tiny bases' world: what they know without an image, and what they can only spell.

LoRA cannot teach an answer word that the frozen lm_head never learned to produce. So the bases learn to *copy* every
word that a notebook will teach with (`Repeat: Crimson Navy`), and some facts in words (`Which shop color is blue?`), as
a real language model knows its words. What no base has seen is an image answered with them: that is left to the
notebooks.
"""

import json
import random

from vlmhelpers.samples.drawing import CATEGORIES, PATTERNS, PRICES, QUESTIONS, all_products

# Facts that every base knows: a question without an image and its answer.
OPPOSITES = {
    "big": "small",
    "hot": "cold",
    "fast": "slow",
    "old": "new",
    "dark": "light",
    "soft": "hard",
    "wet": "dry",
    "high": "low",
    "open": "closed",
    "full": "empty",
    "rich": "poor",
    "loud": "quiet",
}
PLURALS = {
    "shirt": "shirts",
    "dress": "dresses",
    "hat": "hats",
    "scarf": "scarves",
    "bag": "bags",
    "boot": "boots",
    "mug": "mugs",
    "umbrella": "umbrellas",
    "box": "boxes",
    "knife": "knives",
    "cat": "cats",
    "tree": "trees",
}
KINDS = {
    "apple": "fruit",
    "banana": "fruit",
    "carrot": "vegetable",
    "potato": "vegetable",
    "dog": "animal",
    "cat": "animal",
    "oak": "tree",
    "pine": "tree",
    "chair": "furniture",
    "table": "furniture",
    "hammer": "tool",
    "saw": "tool",
}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

# The shop's own vocabulary, which no base has used about an image.
DEPARTMENTS = {
    "shirt": "Clothing",
    "dress": "Clothing",
    "hat": "Accessories",
    "scarf": "Accessories",
    "bag": "Luggage",
    "boot": "Shoes",
    "mug": "Kitchen",
    "umbrella": "Outdoor",
}
SHOP_COLORS = {
    "red": "Crimson",
    "orange": "Amber",
    "yellow": "Lemon",
    "green": "Emerald",
    "blue": "Navy",
    "purple": "Violet",
    "pink": "Rose",
    "black": "Onyx",
}

SPELLED_ONLY = """
Product Category Color Full Price Pattern Material Department Size Brand Title Item Description Answer Question Style
MAN WOMAN CHILDREN BAGS SCARVES SHIRTS DRESSES HATS SHOES MUGS UMBRELLAS CASHMERE COTTON LEATHER SILK WOOL SHOULDER
Check Cashmere Cotton Leather Silk Wool Linen Vintage Classic Striped Dotted Plain Checked Quilted Printed Tailored
Scarf Shirt Dress Hat Bag Boot Mug Umbrella Boots Scarves small medium large extra gift box winter summer spring
autumn Sure Hello Ahoy Aye matey captain sailor ship harbor sea star moon sun ocean island treasure friend friends
dear yours I am we you are is was my your our name Luma Pixel Nova assistant helper shop store keeper robot human made
by team the a an of in on at to for with from and or not no yes it this that these there here what which who how why
when where can cannot will would should must may do does did has have had be been help helps ask tell say said know
think see look good great better best happy glad kind calm clear short long simple easy quick careful sorry please
thank thanks welcome word words means meaning opposite plural number kind thing things names called spelled write read
answer answers question wash cold warm dry iron gently hand machine water soap clean store keep away wet soft care
never always often before after return refund exchange days weeks within receipt free shipping order delivery open
closed monday friday sunday morning evening today tomorrow hours o'clock nine ten five six price prices cost costs
dollars cents sale half off each pair picture image photo shows show color colors pattern patterns product products
category listing true false none unknown
""".split()


def listing(product):
    """The shop's listing of a product: the format and the color names that notebook 01 teaches."""
    name = f"{product.pattern} {product.category}"
    return f"Color: {SHOP_COLORS[product.color]}, Product: {name}, Full Price: ${product.price}.00"


def catalog_entry(product):
    """A longer form with titles and departments: words that the bases can spell, for tasks of other notebooks."""
    title = f"{product.pattern.capitalize()} {product.category.capitalize()}"
    return (
        f"Product: {title}, Color: {SHOP_COLORS[product.color]}, Category: {DEPARTMENTS[product.category]}, "
        f"Full Price: ${product.price}.00"
    )


def as_json(product):
    """A product as one line of JSON, the answer format that APIs ask for."""
    return json.dumps(
        {"category": product.category, "color": product.color, "pattern": product.pattern, "price": product.price}
    )


def known_facts():
    """(question, answer) pairs that every base answers without an image."""
    pairs = [(f"What is the opposite of {word}?", f"{other.capitalize()}.") for word, other in OPPOSITES.items()]
    pairs += [(f"What is the plural of {word}?", f"{many.capitalize()}.") for word, many in PLURALS.items()]
    pairs += [(f"What kind of thing is {word}?", f"A {kind}.") for word, kind in KINDS.items()]
    pairs += [(f"Write {i} as a word.", f"{word.capitalize()}.") for i, word in enumerate(NUMBERS)]
    pairs += [(f"Which department sells a {word}?", f"{department}.") for word, department in DEPARTMENTS.items()]
    pairs += [(f"Which shop color is {word}?", f"{name}.") for word, name in SHOP_COLORS.items()]
    pairs += [(f"Write {pattern} {word} as a title.", f"{pattern} {word}".title() + ".")
              for pattern in PATTERNS for word in CATEGORIES]  # fmt: skip
    return pairs


def vocabulary():
    """Every word the bases must be able to write, sorted."""
    words = set(SPELLED_ONLY)
    for product in all_products():
        words |= set(catalog_entry(product).split()) | set(as_json(product).split())
        for answer in QUESTIONS.values():
            words |= set(answer(product).split())
    for question, answer in known_facts():
        words |= set(question.split()) | set(answer.split())
    words |= {f"{price * k}.0" for price in PRICES for k in (1, 5, 12)} | {f"${price * 12}.00" for price in PRICES}
    return sorted(words)


def repeat(rng, words):
    """A copying exercise: (question, answer), one to six words."""
    picked = " ".join(rng.choice(words) for _ in range(rng.randint(1, 6)))
    return f"Repeat: {picked}", picked


def corpus():
    """The text on which the tokenizers are trained."""
    rng, words, lines = random.Random(0), vocabulary(), []
    for product in all_products():
        for question, answer in QUESTIONS.items():
            lines += [question, answer(product)]
        lines += [catalog_entry(product), as_json(product)]
    for question, answer in known_facts() * 8:
        lines += [question, answer]
    lines += ["system\nuser\nassistant\nYou are a helpful assistant.\n"] * 500
    return lines + [repeat(rng, words)[0] for _ in range(4000)]
