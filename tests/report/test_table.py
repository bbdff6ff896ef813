"""The shipped tables, and what the reader of a table refuses."""

import pytest

from st3.errors import UserError
from st3.report.style import styles
from st3.report.table import Published, load_table
from st3.sparsify import METHODS
from st3.tables.reproduce import PUBLISHED

NAMES = sorted(path.stem for path in PUBLISHED.glob("*.yaml"))


def shipped(name):
    return load_table(PUBLISHED / f"{name}.yaml")


def test_the_tables_are_there():
    assert NAMES == [
        "ablation", "cifar100_wrn34_2", "cifar10_resnet20", "cifar10_study", "fashion_mnist_embedded",
        "mobilenet_v1_imagenet", "resnet50_imagenet", "study_embedded", "study_ham", "study_precision",
    ]  # fmt: skip


# Top-1 % and million MACs by hand from the papers' tables; a series is complete where it is listed.
IMAGENET = {
    ("Dense", 0): (77.10, 4089),
    ("ST-3", 0.80): (76.95, 1215),
    ("ST-3", 0.90): (76.03, 764),
    ("ST-3", 0.95): (74.46, 436),
    ("ST-3", 0.965): (73.31, 351),
    ("ST-3", 0.98): (70.46, 220),
    ("ST-3", 0.99): (63.88, 120),
    ("ST-3σ", 0.80): (76.44, 739),
    ("ST-3σ", 0.90): (75.28, 397),
    ("ST-3σ", 0.95): (73.69, 219),
    ("ST-3σ", 0.965): (72.62, 167),
    ("ST-3σ", 0.98): (69.75, 116),
    ("ST-3σ", 0.99): (63.25, 69),
    ("Feather", 0.90): (76.93, None),
    ("GMP", 0.80): (75.58, None),
    ("GMP", 0.90): (73.91, None),
    ("GMP", 0.95): (70.59, None),
    ("GMP", 0.98): (57.90, None),
    ("GMP extended", 0.80): (76.52, None),
    ("GMP extended", 0.90): (75.16, None),
    ("GMP extended", 0.95): (72.71, None),
    ("GMP extended", 0.965): (69.26, None),
    ("STR", 0.813): (76.12, 705),
    ("STR", 0.902): (74.31, 343),
    ("STR", 0.952): (70.23, 162),
    ("STR", 0.961): (67.78, 127),
    ("STR", 0.981): (61.46, 73),
    ("STR", 0.990): (51.82, 47),
    ("ProbMask", 0.90): (74.68, None),
    ("RigL", 0.80): (75.12, None),
    ("RigL", 0.90): (73.07, None),
    ("RigL", 0.95): (70.39, None),
    ("AC/DC", 0.80): (76.45, None),
    ("AC/DC", 0.90): (75.03, None),
    ("AC/DC", 0.95): (73.14, None),
    ("AC/DC", 0.98): (68.48, None),
    ("Top-KAST", 0.80): (74.76, None),
    ("Top-KAST", 0.90): (70.42, None),
    ("OptG", 0.90): (74.55, 342),
    ("OptG", 0.95): (72.45, 221),
    ("OptG", 0.965): (70.85, 179),
    ("OptG", 0.98): (67.20, 126),
    ("OptG", 0.99): (62.10, 83),
    ("Hard straight-through", 0.90): (74.03, None),
    ("AC/DC + HAM", 0.80): (77.20, None),
    ("AC/DC + HAM", 0.90): (76.66, None),
    ("AC/DC + HAM", 0.95): (75.45, None),
    ("RigL + HAM", 0.80): (76.22, None),
    ("RigL + HAM", 0.90): (74.83, None),
    ("RigL + HAM", 0.95): (72.93, None),
    ("STR + HAM", 0.80): (76.37, None),
    ("STR + HAM", 0.90): (75.01, None),
    ("STR + HAM", 0.95): (71.41, None),
}
MOBILENET = {
    ("STR", 0.753): (68.35, 101),
    ("STR", 0.890): (62.10, 42),
    ("AC/DC", 0.75): (70.41, None),
    ("AC/DC", 0.90): (66.24, None),
    ("OptG (180 epochs)", 0.80): (70.27, 124),
    ("OptG (180 epochs)", 0.90): (66.80, 80),
}


@pytest.mark.parametrize(("name", "figures"), [("resnet50_imagenet", IMAGENET), ("mobilenet_v1_imagenet", MOBILENET)])
def test_every_published_figure_is_there_and_no_other(name, figures):
    rows = shipped(name).rows
    found = {(r.label, r.sparsity): (r.published.top1, r.published.macs_millions) for r in rows if r.published}
    assert found == figures
    assert all(row.published.source for row in rows if row.published)


@pytest.mark.parametrize("name", ["cifar10_resnet20", "cifar100_wrn34_2"])
def test_the_cifar_tables_cross_all_methods_with_all_sparsities(name):
    table = shipped(name)
    assert [row.sparsity for row in table.series[0].rows] == [0]
    for series in table.series[1:]:
        assert [row.sparsity for row in series.rows] == [0.8, 0.9, 0.95, 0.98, 0.99]
    assert {row.method for row in table.rows} >= METHODS.keys() - {"str"}  # no settings are known for these targets


def test_the_ablation_changes_one_factor_at_a_time_and_has_the_square():
    own = {
        row.label: set(row.overrides) - {"recipe=cifar10_resnet20", "sparsity=0.95"} for row in shipped("ablation").rows
    }
    assert own == {
        "Dense": {"method=dense", "sparsity=0"},
        "ST-3": {"method=st3"},
        "hard threshold": {"method=st3", "method.shrink=hard"},
        "not rescaled": {"method=st3", "method.rescale=false"},
        "hard and not rescaled": {"method=st3", "method.shrink=hard", "method.rescale=false"},
        "masked gradient": {"method=st3", "method.theta=0"},
        "linear ramp": {"method=st3", "schedule.power=1"},
        "ST-3σ": {"method=st3_sigma"},
    }


@pytest.mark.parametrize("name", NAMES)
def test_no_two_series_of_a_table_look_alike(name):
    look = styles(series.label for series in shipped(name).series)
    assert len(set(look.values())) == len(look)
    if "ST-3" in look:  # a method that is known by name looks the same in every table
        assert look["ST-3"] == styles(["something else", "ST-3"])["ST-3"]


def write(folder, series, rest="overrides: [epochs=1]\nsparsities: [0.8, 0.9]"):
    path = folder / "mine.yaml"
    path.write_text(f"title: Mine\n{rest}\nseries:\n{series}", encoding="utf-8")
    return path


def test_a_row_is_what_its_series_and_its_table_say(tmp_path):
    path = write(
        tmp_path,
        "- {label: My σ, method: st3, overrides: [epochs=2], source: me, points: {0.965: {top1: 70}, 0.5: {},"
        " 0.6: {overrides: [epochs=3]}, 0.7: {run: false, top1: 72}}}\n"
        "- {label: GMP, method: gmp}\n"
        "- {label: Other, run: false, source: them, points: {0.9: {top1: 60, macs_millions: 5}}}\n",
    )
    table = load_table(path)
    assert (table.name, table.title, table.notes, table.reference) == ("mine", "Mine", (), None)
    one = "- {label: A, method: st3}\n- {label: B, method: gmp}\nreference: B"
    assert load_table(write(tmp_path, one)).reference == "B"
    half, more, without, most, *gmp, other = table.rows
    assert more.overrides == ("epochs=3", "method=st3", "sparsity=0.6")
    assert (without.method, without.overrides, without.published) == (None, (), Published(72, None, "me"))
    assert half.overrides == ("epochs=2", "method=st3", "sparsity=0.5")
    assert (half.slug, half.name, half.published) == ("my-sigma-50", "My σ, 50 %", None)
    assert (most.slug, most.name, most.published) == ("my-sigma-96.5", "My σ, 96.5 %", Published(70, None, "me"))
    assert [row.sparsity for row in gmp] == [0.8, 0.9]
    assert (other.method, other.overrides, other.published) == (None, (), Published(60, 5, "them"))


@pytest.mark.parametrize(
    ("series", "says"),
    [
        ("- {method: st3}", "series 1 lacks label"),
        ("- {label: A}", "(A): give a method, or run: false"),
        ("- {label: A, method: st3, run: false}", "(A): give a method, or run: false"),
        ("- {label: A, method: st3, sparsity: 0.9}", "sparsity is not known, write label, method"),
        ("- {label: A, method: st3, points: {1.5: {}}}", "the sparsity 1.5 of a point lies outside [0, 1)"),
        ("- {label: A, method: st3, points: {0.9: {top1: 70}}}", "published figures need a source"),
        ("- {label: A, method: st3, source: me, points: {0.9: {top5: 70}}}", "top5 is not known, write macs_millions"),
        ("- {label: A, method: st3, points: {0.9: {macs_millions: 7}}}", "0.9: macs_millions without top1"),
        ("- {label: A, method: st3, overrides: epochs=2}", "overrides must be a list"),
        ("- {label: A, method: st3}\n- {label: a, method: gmp}", "two rows would share the name a-80"),
        ("- {label: A, method: st3}\nreference: B", "reference B is the label of no series"),
        ("- {label: A, method: st3}\naccuracy: train", "accuracy train is neither test nor validation"),
        ("- A", "series 1 is not a list of settings"),
        ("- {label: A", "cannot read"),
        ("- {label: 5, method: st3}", "label must be text, not 5"),
        ("- {label: [A], method: st3}", "label must be text"),
        ("- {label: A, method: st3, points: [0.9]}", "points must be at most 1000 sparsities"),
        ("- {label: A, method: st3, points: {.nan: {}}}", "the sparsity nan of a point"),
        (
            "- {label: A, method: st3, source: me, points: {0.9: {top1: .inf}}}",
            "top1 inf must be a number from 0 to 100",
        ),
        ("- {label: A, method: st3, source: me, points: {0.9: {top1: high}}}", "top1 high must be a number"),
        ("- {label: A, method: st3, overrides: [5]}", "an override must be text, not 5"),
        ("- {label: A, method: st3, overrides: [hydra.run.dir=/tmp]}", "hydra.run.dir=/tmp is no setting of a run"),
        ("- {label: A, method: st3, overrides: [+hydra.x=1]}", "is no setting of a run"),
        ("- {label: A, method: st3, overrides: [hydra/launcher=basic]}", "is no setting of a run"),
        ("- {label: A, method: st3, overrides: [schedule@hydra.x=cubic]}", "is no setting of a run"),
        ("- {label: A, method: st3, overrides: [--config-dir=/tmp]}", "is no setting of a run"),
        ("- {label: A, method: st3, overrides: [run_dir=/tmp]}", "run_dir=/tmp: write --out"),
        ("- {label: A, method: st3, overrides: [++run_dir=/tmp]}", "write --out"),
        ("- {label: A, method: st3, overrides: [seed=3]}", "write --seeds"),
        ("- &a {label: A, method: st3}\n- *a", "anchors"),
        ("".join(f"- {{label: A{n}, method: st3}}\n" for n in range(501)), "more than 1000 rows"),
    ],
)
def test_a_mistake_is_named(series, says, tmp_path):
    with pytest.raises(UserError) as caught:
        load_table(write(tmp_path, series))
    assert says in str(caught.value)
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)
