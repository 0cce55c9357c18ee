"""Whatever a file holds, what comes out is an answer or an error of this project: a fixed few of `make fuzz`."""

import sys

import pytest

CASES = 200


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_no_mutation_of_a_file_ends_in_a_foreign_error_a_hang_or_running_code():
    from fuzz import FORBIDDEN, TARGETS, base_folder, report, run

    with base_folder() as base:
        outcomes = run(seed=13, cases=list(range(CASES)), base=base)
    assert len(outcomes) == CASES and {outcome.target for outcome in outcomes} == set(TARGETS)
    assert not [outcome for outcome in outcomes if outcome.kind in FORBIDDEN], report(outcomes)
    kinds = [outcome.kind for outcome in outcomes]
    assert min(kinds.count("refused"), kinds.count("unchanged"), kinds.count("accepted")) > 10, report(outcomes)
