"""What is said around a table of results: what its marks mean, what to know before the numbers, how they were made."""

import shlex
from collections.abc import Callable, Iterable, Sequence

from st3.report.results import Contest, Results, Run
from st3.report.statistics import Statistic
from st3.report.table import Row

OF_IMAGES = {
    "test": "Top-1 is in percent of the test images, of the network after the last epoch; differences are in points.",
    "validation": "Top-1 is in percent of held-out training images, of the network after the last epoch; differences "
    "are in points. The test images play no part.",
}
CONVENTIONS = (
    "Intervals are Student's, for 95 %, over the seeds; what other images would change is not in them. With few "
    "seeds they are wide: a row inside the noise of the best need not be as good, it could not be told apart.",
    "Each interval is for its own pair, not corrected for how many there are: of 20 rows exactly as good as the best, "
    "one is expected to fall outside. The best was chosen by these same runs, which flatters it.",
    "Only rows of the same network, images, sparsity and number of epochs are ranked against each other.",
    "Sparsity is the fraction of the prunable weights that are exactly zero, counted in the trained network; prunable "
    "are the weights of every Conv2d and Linear layer that the run does not leave dense.",
    "MACs are multiply-accumulates of Conv2d and Linear layers for one image; a zero weight costs nothing; biases, "
    "normalisation, activations and pooling are not counted.",
    "Published figures follow the conventions of their own sources.",
)


def conventions(results: Results) -> list[str]:
    """How everything is counted."""
    return [OF_IMAGES[results.table.accuracy], *CONVENTIONS]


def footnotes(results: Results) -> list[str]:
    """What the marks in the table mean and who leads, to be shown below it."""
    lines = []
    if any(len(result.runs) > 1 for result in results.measured):
        lines.append("± is the half-width of the 95 % interval of the mean over n seeds; one seed has none.")
    if results.contests:
        lines.append(
            "Bold: the best row at its sparsity, and every row inside the noise of the best: the 95 % interval of its "
            "difference from the best, paired by seed and for each pair by itself, reaches 0."
        )
    several = len({contest.task for contest in results.contests}) > 1
    lines += [_lead(contest, f" of {contest.task}" if several else "") for contest in results.contests]
    lines += [f"Not ranked, {why}: {by_sparsity(rows)}." for why, rows in _unranked(results).items()]
    if any(result.missed for result in results.rows):
        lines.append("† The measured sparsity of a run misses the target by more than 0.5 points.")
    rows: dict[str, list[str]] = {}
    for result in results.rows:
        for warning in result.warnings:
            rows.setdefault(warning, []).append(result.row.name)
    return lines + [f"‡ {'; '.join(names)}: {warning}." for warning, names in rows.items()]


def warnings(results: Results) -> list[str]:
    """What a reader must know before the numbers: that the runs are not those of the table, or not all there."""
    lines = []
    runs = results.runs
    if changes := dict.fromkeys(change for run in runs for change in run.outcome.changes):
        changed = sum(bool(run.outcome.changes) for run in runs)
        which = f"{changed} of {len(runs)} runs" if changed < len(runs) else "All runs"
        lines.append(f"{which} depart from the table's own settings: {', '.join(changes)}.")
    budgets = sorted({run.outcome.epochs for run in runs})
    if len(budgets) > 1:
        lines.append(f"The runs differ in their epochs: {', '.join(map(str, budgets))}.")
    precisions: dict[str, list[Row]] = {}
    for result in results.measured:
        if len(used := sorted({run.outcome.precision for run in result.runs if run.outcome.precision})) > 1:
            precisions.setdefault(", ".join(used), []).append(result.row)
    lines += [
        f"Runs of one row differ in their precision, {used}: {by_sparsity(rows)}." for used, rows in precisions.items()
    ]
    if results.unfinished:
        lines.append(f"Not finished, and not counted: {', '.join(results.unfinished)}.")
    lines += results.left_out
    if results.empty:
        lines.append(f"Neither measured nor published yet: {by_sparsity(results.empty)}.")
    return lines


def remarks(results: Results) -> list[str]:
    """The notes of the table and of its series, and which layers the runs have pruned."""
    lines = [" ".join(note.split()) for note in results.table.notes]
    shown = {result.row.label for result in results.rows}
    for series in results.table.series:
        if series.note and series.label in shown:
            lines.append(f"{series.label}: {' '.join(series.note.split())}")
    by_layers: dict[str, list[str]] = {}
    for result in results.measured:
        if result.row.sparsity:
            for run in result.runs:
                labels = by_layers.setdefault(_pruned(run), [])
                if result.row.label not in labels:
                    labels.append(result.row.label)
    alike = len(by_layers) == 1
    lines += [
        f"Layers pruned in {'all sparse runs' if alike else f'the measured runs of {_listed(labels)}'}: {what}."
        for what, labels in by_layers.items()
    ]
    return lines


def sources(results: Results) -> list[str]:
    """Where the published figures are from, in a sentence; none where none are shown."""
    labels: dict[str, list[str]] = {}
    for result in results.rows:
        if result.row.published:
            of_source = labels.setdefault(result.row.published.source, [])
            of_source += [result.row.label] if result.row.label not in of_source else []
    texts = [f"{_listed(names)}: {source}" for source, names in labels.items()]
    return [f"Sources of the published figures: {'; '.join(texts)}."] if texts else []


def making(results: Results) -> list[str]:
    """How long the runs are and took, when, and the versions and devices that made them."""
    if not results.runs:
        return []
    runs = results.runs

    def values(of_run: Callable[[Run], object]) -> str:
        return ", ".join(dict.fromkeys(str(of_run(run)) for run in runs))

    def device(run: Run) -> str:
        threads, precision = run.outcome.cpu_threads, run.outcome.precision
        how = [*([f"CPU threads: {threads}"] if threads else []), *([precision] if precision else [])]
        return f"{run.outcome.device}" + (f" ({', '.join(how)})" if how else "")

    return [
        f"{len(runs)} {'run' if len(runs) == 1 else 'runs'} of {values(lambda run: run.outcome.epochs)} epochs, "
        f"{values(lambda run: run.outcome.model)} on {values(lambda run: run.outcome.dataset)}, seeds "
        f"{spans(run.seed for run in runs)}, {sum(run.outcome.seconds for run in runs) / 3600:.2f} hours together.",
        f"st3 {values(lambda run: run.outcome.st3)}, PyTorch "
        f"{values(lambda run: run.outcome.torch)}, on {values(device)}; "
        f"git commit {values(lambda run: run.outcome.git or 'none known')}; {_dates(runs)}.",
    ]


def command(results: Results, table: str) -> str:
    """That makes these runs, where `table` is how the table is named in it; empty without runs."""
    if not results.runs:
        return ""
    words = ["st3", "reproduce", table, "--seeds", spans(run.seed for run in results.runs)]
    if patterns := _patterns(results):
        words += ["--rows", ",".join(patterns)]
    first, *others = (run.outcome.changes for run in results.runs)
    words += [each for each in first if not each.startswith("not ") and all(each in changes for changes in others)]
    return shlex.join(words)


def by_sparsity(rows: Sequence[Row]) -> str:
    """Their names: A, B at 80, 90 %; C at 95 %."""
    of_label: dict[str, list[str]] = {}
    for row in rows:
        of_label.setdefault(row.label, []).extend([f"{100 * row.sparsity:g}"] if row.sparsity else [])
    labels: dict[str, list[str]] = {}
    for label, sparsities in of_label.items():
        labels.setdefault(", ".join(sparsities), []).append(label)
    return "; ".join(_listed(names) + (f" at {what} %" if what else "") for what, names in labels.items())


def _listed(labels: Iterable[str]) -> str:
    """With commas; what has one itself is quoted."""
    return ", ".join(f'"{label}"' if "," in label else label for label in labels)


def spans(numbers: Iterable[int]) -> str:
    """As --seeds takes them: 0..2,7."""
    ordered = sorted(set(numbers))
    starts = [n for n in ordered if n - 1 not in ordered]
    ends = [n for n in ordered if n + 1 not in ordered]
    return ",".join(f"{a}..{b}" if a < b else f"{a}" for a, b in zip(starts, ends, strict=True))


def signed(value: float) -> str:
    """Two decimals and always a sign, but no minus before zero."""
    rounded = round(value, 2) + 0.0
    return f"{rounded:+.2f}".replace("-", "−")


def plus_minus(value: Statistic, mean: Callable[[float], str] = "{:.2f}".format) -> str:
    """83.21 ± 0.45, the half-width of the 95 % interval; for one seed without it."""
    return mean(value.mean) + (f" ± {value.half_width:.2f}" if value.half_width is not None else "")


def _lead(contest: Contest, of_task: str) -> str:
    """What lies between the best row and the one after it."""
    second = contest.rows[1]
    lead = contest.best.minus(second)
    assert lead
    unclear = "; which of them is better is not shown" if contest.inside_noise(second) else ""
    best, after = _listed([contest.best.row.label]), _listed([second.row.label])
    return (
        f"At {100 * contest.sparsity:g} % sparsity after {contest.epochs} epochs{of_task}, {best} minus the next row, "
        f"{after}: {plus_minus(lead, signed)} points, paired over {lead.n} seeds{unclear}."
    )


def _unranked(results: Results) -> dict[str, list[Row]]:
    """Why to which rows, of those that others have been measured beside."""
    beside = [(result.row.sparsity, result.task) for result in results.measured]
    found: dict[str, list[Row]] = {}
    for result in results.measured:
        if beside.count((result.row.sparsity, result.task)) > 1 and not results.contest(result):
            if result.missed:
                why = "as a run misses the sparsity"
            elif len(result.epochs) > 1:
                why = "as their runs differ in their epochs"
            elif len(result.runs) == 1:
                why = "with one seed"
            else:
                why = "without two seeds in common with the best other row of as many epochs"
            found.setdefault(why, []).append(result.row)
    return found


def _dates(runs: Sequence[Run]) -> str:
    dates = sorted(run.outcome.date for run in runs if run.outcome.date)
    if not dates:
        return "dates not recorded"
    missing = f" ({len(runs) - len(dates)} without a date)" if len(dates) < len(runs) else ""
    return " to ".join(dict.fromkeys((dates[0], dates[-1]))) + missing


def _patterns(results: Results) -> list[str]:
    """For --rows: those that have runs; none where all have that can be trained."""
    done = {result.row.slug for result in results.measured}
    rows = [row for row in results.table.rows if row.method]
    patterns = []
    for sparsity in sorted({row.sparsity for row in rows}):
        slugs = [row.slug for row in rows if row.sparsity == sparsity]
        whole = len(slugs) > 1 and done.issuperset(slugs)
        patterns += [f"*-{100 * sparsity:g}"] if whole else [slug for slug in slugs if slug in done]
    return [] if done.issuperset(row.slug for row in rows) else patterns


def _pruned(run: Run) -> str:
    layers, dense = run.outcome.layers, run.outcome.dense_layers
    return f"{layers - len(dense)} of {layers}" + (f", not {', '.join(dense)}" if dense else "")
