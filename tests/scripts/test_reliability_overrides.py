"""Wrong overrides, as `scripts/reliability/overrides.py` makes them: one of sixty, and half of the odd ones."""

import contextlib

import pytest
from reliability.overrides import LEGAL, all_cases, all_settings, answer, others, table, with_files


def test_every_setting_has_its_legal_values():
    assert set(LEGAL) == {name for name, _ in all_settings()}


@pytest.mark.slow
def test_what_is_wrong_ends_in_one_line_that_names_it(tmp_path):
    cases = [*all_cases()[::60], *list(others())[::2]]
    with contextlib.chdir(tmp_path):
        with_files()
        answers = [answer(case) for case in cases]
    assert {each.kind for each in answers} == {"fine"}, table(answers)
