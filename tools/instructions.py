"""Pictures asked with an instruction: which fields to name, in which form, perhaps with examples of answers.

A real model answers in the form that a prompt asks for, and takes from examples what the prompt leaves open. So the
bases of Qwen3-VL and InternVL are pretrained on a few forms, with the fields in any choice and order but one,
`HELD_OUT`, which notebook 05 asks for. Without examples a price in JSON is a number, with them as they have it. Without
an instruction they answer in sentences, whatever else the question asks for.
"""

import json

from vlmhelpers.samples.drawing import QUESTIONS, caption

HELD_OUT = ("color", "pattern", "category", "price")  # no instruction has all fields in this order
FORMS = {  # as the instruction calls it: the answer with these names and values
    "one line of JSON": json.dumps,
    "words separated by commas": lambda values: ", ".join(map(str, values.values())),
    "names and values": lambda values: ", ".join(f"{name.capitalize()}: {value}" for name, value in values.items()),
}


def instructed(rng, product, others, words):
    """(question, answer) on `product`: an instruction, answers on up to three of `others`, and then any question."""
    fields, form, shown = HELD_OUT, rng.choice(list(FORMS)), rng.choice([0, 0, 1, 2, 3])
    while fields == HELD_OUT:
        fields = tuple(rng.sample(HELD_OUT, rng.choice([1, 2, 3, 3, 4, 4])))
    number = form == "one line of JSON" and (not shown or rng.random() < 0.5)
    examples = [written(other, form, fields, number) for other in rng.sample(others, shown)]
    return instruction(form, fields, examples) + any_question(rng, words), written(product, form, fields, number)


def instruction(form, fields, examples=()):
    """The text that `vlmhelpers.data.prompted` would put before the question."""
    *first, last = fields
    lines = [f"Answer with {form}: {', '.join(first)}{' and ' if first else ''}{last}."]
    return "\n".join([*lines, *(["Examples of answers:", *examples] if examples else [])]) + "\n\n"


def written(product, form, fields, number=False):
    """The `fields` of a product in a form, the price as a number or as `$20`."""
    values = {name: getattr(product, name) for name in fields}
    if "price" in values and not number:
        values["price"] = f"${product.price}"
    return FORMS[form](values)


def any_question(rng, words):
    """One of those that the bases answer, or the first of them with words that it never had."""
    if rng.random() < 0.5:
        return rng.choice(list(QUESTIONS))
    asked = " ".join(rng.choice(words) for _ in range(rng.randint(1, 2))).rstrip(".,:")
    return f"Describe this product {rng.choice(['as', 'in', 'with', 'for'])} {asked}."


def uninstructed(rng, product, words):
    """(question, answer) of a question that asks for some other form and says no more: its caption all the same."""
    while (question := any_question(rng, words)) in QUESTIONS:
        pass
    return question, caption(product)
