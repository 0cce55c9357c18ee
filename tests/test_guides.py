"""The guides keep up with the code: the reference is what the code says now."""

from recursivemas.docs.reference import API, PAGE, page


def test_the_reference_is_what_the_code_says():
    assert PAGE.read_text(encoding="utf-8") == page(), "the code says something else by now: make reference"


def test_the_reference_says_something_of_every_name():
    """Each heading has a text below its signature, so that no docstring is lost on the way."""
    text = page()
    parts = text.partition("## Styles")[0].split("\n#### ")[1:]
    names = {part.partition("\n")[0].strip("`") for part in parts}
    assert {name.removesuffix("*") for _, group in API.values() for name in group} <= names
    assert {".from_pretrained", ".solve", ".generate", ".save_pretrained", ".push_to_hub", ".set_link"} <= names
    for part in parts:
        assert part.partition("\n")[2].rpartition("```\n")[2].strip(), part
