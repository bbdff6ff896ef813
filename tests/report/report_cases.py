"""Small tables, and run directories of their rows."""

from fake_runs import ENVIRONMENT, fake_layer, fake_run, fake_summary

from st3.report.table import Published, Row, Series, Table


def series(label, *points, method="st3", note=None):
    rows = tuple(
        Row(
            label,
            method,
            sparsity,
            ("epochs=4", f"method={method}"),
            published and Published(*published, "a_paper & co"),
        )
        for sparsity, published in points
    )
    return Series(label, note, rows)


def make_table(*all_series):
    return Table("mine", "50 % of A_B & C", ("A note.",), all_series)


def make_run(folder, row, seed, *, top1=70.0, off=0.0, typed=None, environment=ENVIRONMENT, **changes):
    """A run of two layers and four epochs; `off` is how far its sparsity is from the target."""
    path, sparsity = folder / f"{row.slug}-s{seed}", row.sparsity + off
    metrics = [
        {"step": 2 * e, "sparsity": row.sparsity * e / 4, "test_top1": top1 * e / 4 if e > 1 else ""}
        for e in range(1, 5)
    ]
    fake_run(
        path,
        fake_summary(**{"top1": top1, "sparsity": sparsity} | changes),
        overrides=[*(typed or row.overrides), f"seed={seed}", f"run_dir={path}"],
        layers=[fake_layer("conv1", sparsity, pruned=False), fake_layer("conv2", sparsity)],
        metrics=metrics,
        environment=environment,
    )
