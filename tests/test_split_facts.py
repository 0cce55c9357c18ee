"""Split facts: what the task promises of its rows, and its metric."""

import re

import pytest
from recursivemas.evaluation.measure import load_rows
from recursivemas.evaluation.metrics import METRICS
from recursivemas.prompts_recursivemas import input_fields, validate_prompts
from recursivemas.solutions_recursivemas import Solution
from recursivemas.system_loader import read_style
from recursivemas.tasks import TASKS, split_facts
from recursivemas.topology_recursivemas import Link, Topology

NAMES, TRAINED, UNSEEN, MORE = (split_facts.TABLE[key] for key in ("names", "trained", "unseen", "more"))
KINDS = TRAINED | UNSEEN | MORE
LEVELS = [1, 2, 3, 4]


@pytest.fixture(scope="module")
def rows():
    return split_facts.generate(2000, LEVELS, seed=3)


def words_of(text):
    return re.findall(r"\w+", text.lower())


def pattern_of(wording):
    blanks = {r"\{name\}": r"(?P<name>\w+)", r"\{value\}": r"(?P<value>\w+)"}
    pattern = re.escape(wording)
    for blank, group in blanks.items():
        pattern = pattern.replace(blank, group)
    return re.compile(pattern)


PATTERNS = {
    wordings: [
        (kind, index, pattern_of(wording))
        for kind, entry in KINDS.items()
        for index, wording in enumerate(entry[wordings])
    ]
    for wordings in ("facts", "questions")
}


def kind_and_wording(text, wordings):
    """(kind, number of the wording, name, value) of a fact or (…, name) of a question, for every one that fits."""
    found = ((kind, index, pattern.fullmatch(text)) for kind, index, pattern in PATTERNS[wordings])
    return [(kind, index, *match.groupdict().values()) for kind, index, match in found if match]


def test_there_are_many_kinds_names_values_and_wordings():
    assert len(NAMES) >= 24 and len(TRAINED) >= 12 and len(UNSEEN) >= 6 and len(MORE) >= 30
    assert len(KINDS) == len(TRAINED) + len(UNSEEN) + len(MORE)
    for kind, entry in KINDS.items():
        assert len(set(entry["values"])) == len(entry["values"]) >= (6 if kind in MORE else 10)
    for wordings in ("facts", "questions"):
        assert all(len(set(entry[wordings])) >= 3 for entry in (UNSEEN | MORE).values())
        assert all(len(set(entry[wordings])) >= split_facts.TRAINED_WORDINGS + 2 for entry in TRAINED.values())


def test_a_value_is_a_word_that_stands_nowhere_else():
    values = [value.lower() for entry in KINDS.values() for value in entry["values"]]
    texts = [text for entry in KINDS.values() for text in entry["facts"] + entry["questions"]]
    assert all(re.fullmatch(r"\w+", value) for value in values)
    assert len(values) == len(set(values)) and len(NAMES) == len(set(NAMES))
    assert not set(values) & {name.lower() for name in NAMES} and not set(values) & set(words_of(" ".join(texts)))


def test_every_wording_holds_its_blanks_once():
    for entry in KINDS.values():
        assert all(text.count("{name}") == 1 == text.count("{value}") for text in entry["facts"])
        assert all(text.count("{name}") == 1 and "{value}" not in text for text in entry["questions"])


def test_the_answer_stands_in_the_one_fact_that_the_question_asks_for(rows):
    for row in rows:
        facts = re.findall(r"[^.]+\.", row["facts"])
        assert len(facts) == split_facts.PEOPLE * split_facts.FACTS_EACH
        told = [entry for fact in facts for entry in kind_and_wording(fact.strip(), "facts")]
        assert len(told) == len(facts)  # each fact is of one kind
        by_person = [(kind, name, value) for kind, _, name, value in map(ordered, told)]
        assert len({name for _, name, _ in by_person}) == split_facts.PEOPLE
        ((kind, _, name),) = [e for e in kind_and_wording(row["question"], "questions") if e[0] == row["kind"]]
        assert [value for k, n, value in by_person if (k, n) == (kind, name)] == [row["answer"]]
        assert words_of(row["facts"]).count(row["answer"].lower()) == 1
        assert row["answer"] not in row["question"].split()


def ordered(entry):
    """(kind, wording, name, value), in whatever order the wording has them."""
    kind, index, one, other = entry
    return (kind, index, one, other) if one in NAMES else (kind, index, other, one)


def test_a_level_has_its_kinds_and_its_wordings(rows):
    for row in rows:
        kinds, unseen_wordings = [TRAINED, TRAINED, UNSEEN, MORE][row["level"] - 1], row["level"] == 2
        asked = [e for e in kind_and_wording(row["question"], "questions") if e[0] == row["kind"]]
        told = [e for fact in re.findall(r"[^.]+\.", row["facts"]) for e in kind_and_wording(fact.strip(), "facts")]
        for kind, index, *_ in asked + told:
            assert kind in kinds
            if row["level"] < 3:
                assert (index >= split_facts.TRAINED_WORDINGS) == unseen_wordings
    assert {row["kind"] for row in rows} == set(KINDS)


def test_kinds_that_measure_generalisation_are_not_trained_on():
    trained = {kind for level in split_facts.TRAINED_LEVELS for kind in split_facts.kinds_of(level)}
    assert trained and trained.isdisjoint(split_facts.kinds_of(3))


def test_rows_are_the_same_for_a_seed_and_the_asked_fact_is_anywhere(rows):
    assert rows == split_facts.generate(2000, LEVELS, seed=3) != split_facts.generate(2000, LEVELS, seed=4)
    assert [row["level"] for row in split_facts.generate(4, seed=3)] == [1, 2, 3, 1]
    assert {row["level"] for row in split_facts.generate(9, [2], seed=0)} == {2}
    places = [0] * (split_facts.PEOPLE * split_facts.FACTS_EACH)
    for row in rows:
        facts = re.findall(r"[^.]+\.", row["facts"])
        places[next(index for index, fact in enumerate(facts) if row["answer"] in words_of_case(fact))] += 1
    assert all(abs(count - 2000 / 6) < 85 for count in places), places  # five standard deviations


def words_of_case(text):
    return re.findall(r"\w+", text)


def test_what_the_roles_should_say_holds_the_answer(rows):
    for row in rows:
        for texts in row["targets"].values():
            assert all(METRICS[split_facts.METRIC](Solution(text, text), row["answer"]) for text in texts)
        assert row["targets"]["reader"][0] in row["facts"]


def test_only_the_reader_reads_the_facts():
    style = read_style("reading")
    links = tuple(Link(link["source"], link["target"], bool(link.get("feedback"))) for link in style["links"])
    topology = Topology(tuple(map(tuple, style["stages"])), links, style["decoding_role"])
    validate_prompts(split_facts.PROMPTS, topology)
    for phase in ("first", "feedback"):
        assert input_fields(split_facts.PROMPTS, [("reader", "default", phase)]) == ["question", "facts"]
    for phase in ("first", "alone"):
        assert input_fields(split_facts.PROMPTS, [("answerer", "default", phase)]) == ["question"]


def test_the_task_is_known_by_its_name_and_pretrains_nobody():
    assert TASKS["split_facts"] is split_facts
    assert load_rows("split_facts", 3, 7) == split_facts.generate(3, seed=7)
    with pytest.raises(ValueError, match="no agent is pre-trained"):
        split_facts.pretraining_examples("reader", 1)


# Metrics


@pytest.mark.parametrize(
    ("metric", "answer", "gold", "right"),
    [
        ("exact", "12", "12", True),
        ("exact", "12", " 12\n", True),
        ("exact", "12", r"First 3 * 4. So it is \boxed{12}.", True),
        ("exact", "3", r"First 3 * 4. So it is \boxed{12}.", False),
        ("exact", "It is 12.", "12", False),
        ("exact", "Writer", "writer", False),
        ("exact", None, "12", False),
        ("exact", None, "", False),
        ("contains", "Ben works as a Writer.", "writer", True),
        ("contains", "Ben is a ghostwriter.", "writer", False),
        ("contains", "He writes.", "writer", False),
        ("contains", "She lives in New\nYork.", "New York", True),
        ("contains", "12", r"So it is \boxed{12}.", True),
        ("contains", "It is 12.", "12", True),
        ("contains", "It is 12.5, or 3,012.", "12", False),
        ("contains", "What (really)?", "(really)", True),
        ("contains", None, "writer", False),
        ("contains", "Anything.", " ", False),
    ],
)
def test_when_an_answer_is_right(metric, answer, gold, right):
    assert METRICS[metric](Solution(answer or "", answer), gold) is right
