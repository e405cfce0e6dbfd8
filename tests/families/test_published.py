"""Names that are known before transformers is loaded are those of the families themselves."""

from vlmhelpers.families import FAMILIES, find_config, published


def test_the_names_are_those_of_the_families():
    assert set(published.NAMES) == set(FAMILIES) and len(published.NAMES) == len(FAMILIES)


def test_every_published_model_has_a_shape():
    assert published.PUBLISHED and all(find_config(name).get_text_config().hidden_size for name in published.PUBLISHED)
