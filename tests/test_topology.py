import pytest
from recursivemas.errors_recursivemas import ConfigError
from recursivemas.topology_recursivemas import Link, Topology


def chain(feedback=True):
    links = (Link("a", "b"), Link("b", "c")) + ((Link("c", "a", feedback=True),) if feedback else ())
    return Topology((("a",), ("b",), ("c",)), links, "c")


def test_every_role_thinks_in_every_round_until_the_decoder_of_the_last():
    assert chain().schedule(2) == [(1, "a"), (1, "b"), (1, "c"), (2, "a"), (2, "b"), (2, "c")]


def test_without_feedback_earlier_rounds_cannot_matter_and_are_not_run():
    assert chain(feedback=False).schedule(3) == [(3, "a"), (3, "b"), (3, "c")]


def test_roles_after_the_decoder_do_not_run_in_the_last_round():
    topology = Topology((("a",), ("b",)), (Link("a", "b"), Link("b", "a", feedback=True)), "a")
    assert topology.schedule(2) == [(1, "a"), (1, "b"), (2, "a")]


def test_only_links_whose_target_contributes_carry_anything():
    links = (Link("a", "c"), Link("b", "c"), Link("c", "a", True), Link("c", "b", True))
    topology = Topology((("a", "b"), ("c",)), links, "c")
    assert [link.name for link in topology.receivers("c", 1, 2)] == ["c_to_a", "c_to_b"]
    assert topology.receivers("c", 2, 2) == ()


def test_the_first_round_has_no_feedback_slot():
    assert [link.name for link in chain().incoming("a", 1)] == []
    assert [link.name for link in chain().incoming("a", 2)] == ["c_to_a"]


@pytest.mark.parametrize(
    ("stages", "links", "decoding_role", "message"),
    [
        ((), (), "a", "at least one role"),
        ((("a",), ("a",)), (), "a", "more than once"),
        ((("A",),), (), "A", "name that cannot be used"),
        ((("a_to_b",),), (), "a_to_b", "name that cannot be used"),
        ((("a",), ("b",)), (Link("a", "b"),), "x", "Unknown role"),
        ((("a",), ("b",)), (Link("a", "x"),), "b", "Unknown role"),
        ((("a",), ("b",)), (Link("b", "a"),), "a", "must lead to a later stage"),
        ((("a", "b"),), (Link("a", "b"),), "b", "must lead to a later stage"),
        ((("a",), ("b",)), (Link("a", "b"), Link("a", "b", True)), "b", "more than once"),
        ((("a",), ("b",), ("c",)), (Link("a", "c"),), "c", "reaches the decoding role"),
    ],
)
def test_a_table_that_cannot_run_is_refused(stages, links, decoding_role, message):
    with pytest.raises(ConfigError, match=message):
        Topology(stages, links, decoding_role)
