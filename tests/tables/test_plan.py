"""From a table's rows to the commands that train them, and what these cost."""

from pathlib import Path

import pytest
from table_cases import small_rows

from st3.errors import UserError
from st3.report.table import Row
from st3.tables.plan import chosen, describe_cost, plan, training_macs, with_prefix


def test_a_task_for_each_row_and_seed_seed_by_seed():
    tasks = plan(small_rows(), ["epochs=6"], [0, 4], Path("a b"))
    assert [task.run_dir.name for task in tasks] == [
        f"{row}-s{seed}" for seed in (0, 4) for row in ("dense-0", "st-3-80", "linear-80")
    ]
    assert [task.checked().config.seed for task in tasks] == [0, 0, 0, 4, 4, 4]
    assert tasks[0].overrides[-3:] == ("epochs=6", "seed=0", "run_dir='a b/dense-0-s0'")
    assert tasks[4].name == "ST-3, 80 %, seed 4"
    assert tasks[0].command.startswith("python -m st3.train dataset=fake ")


def test_a_row_that_cannot_be_run_keeps_its_error_and_the_others_are_run():
    good, bad = small_rows()[0], Row("Bad", "st3", 0.8, ("schedule.powr=2",), None)
    tasks = plan([good, bad], [], [0], Path("out"))
    assert isinstance(tasks[1].sketch, UserError)
    assert tasks[0].checked()
    with pytest.raises(UserError, match=r"did you mean schedule\.power"):
        tasks[1].checked()
    with pytest.raises(UserError, match=r"did you mean schedule\.power"):  # none can be run
        plan([bad], [], [0], Path("out"))


@pytest.mark.parametrize(
    ("patterns", "rows"),
    [
        (None, ["dense-0", "st-3-80", "linear-80"]),
        (["*"], ["dense-0", "st-3-80", "linear-80"]),
        (["*-80"], ["st-3-80", "linear-80"]),
        (["linear*", "dense-0"], ["dense-0", "linear-80"]),  # in the order of the table, not of the patterns
        (["ST-3*"], ["st-3-80"]),
    ],
)
def test_rows_are_chosen_by_shell_patterns(patterns, rows):
    assert [row.slug for row in chosen(small_rows(), patterns)] == rows


@pytest.mark.parametrize("pattern", ["st-4*", ""])
def test_a_pattern_that_matches_no_row_is_refused(pattern):
    with pytest.raises(UserError, match=f"--rows {pattern.replace('*', '.')} is none of dense-0, st-3-80, linear-80"):
        chosen(small_rows(), ["dense*", pattern])


def test_the_cost_is_three_passes_of_all_images_in_all_epochs():
    row = Row("Dense", "dense", 0, ("recipe=imagenet_resnet50", "method=dense"), None)
    tasks = plan([row], [], [0, 3], Path("out"))
    assert training_macs(tasks[0].checked()) == 3 * 4_089_184_256 * 1_281_167 * 100
    exa, hours = 6 * 4_089_184_256 * 1_281_167 * 100 / 1e18, 2 * 1_281_167 * 100 / 1000 / 3600
    assert describe_cost(tasks, 1000) == f"{exa:.3g} exaMACs, {hours:.3g} h at 1000 images/s"
    longer, shorter = (plan([row], [f"epochs={epochs}"], [0], Path("out"))[0].checked() for epochs in (6, 2))
    assert training_macs(longer) == 3 * training_macs(shorter)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (0, "0 "), (999, "999 "), (1000, "1 kilo"), (27_512_345_678_901, "27.5 tera"), (999_499_999_999, "999 giga"),
        (999_500_000_001, "1 tera"), (3 * 10**21, "3 zetta"), (10**29, "1e+05 yotta"),
    ],
)  # fmt: skip
def test_a_cost_has_a_fitting_prefix(number, says):
    assert with_prefix(number) == says
