"""What cleaning found as tables: suspects.csv, representatives.csv and report.md."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from train.cleaning.source import Labelled
from train.cleaning.suspects import LEAST_MAPS, Judged

SUSPECT_COLUMNS = (
    *("rank", "id", "part", "given", "suggested", "score"),
    *("given_probability", "suggested_probability", "done", "reason"),
)
TOP = 30


def write_suspects(path: Path, given: Labelled, judged: Judged, acts: Mapping[int, str]) -> None:
    """Write one line for each suspect, the most suspicious first; ``acts`` says what was done, by row."""
    _write_csv(path, SUSPECT_COLUMNS, suspect_lines(given, judged, acts))


def suspect_lines(given: Labelled, judged: Judged, acts: Mapping[int, str]) -> Iterator[list[object]]:
    """The values of ``SUSPECT_COLUMNS`` of each suspect."""
    parts = given.part_of()
    for rank, s in enumerate(judged.suspects, start=1):
        name, done = int(given.rows.source_index[s.row]), acts.get(s.row, "listed")
        figures = [f"{v:.4f}" for v in (s.score, s.given_probability, s.suggested_probability)]
        yield [
            *(rank, name, parts[s.row], s.given, s.suggested),
            *figures,
            *(done, s.reason),
        ]


def write_representatives(path: Path, given: Labelled, judged: Judged) -> None:
    """Write the near-centre and far maps of each label, nearest and farthest first."""
    parts, ids = given.part_of(), given.rows.source_index
    lines = (
        [label, kind, place, int(ids[row]), parts[row]]
        for kind, chosen in (("near", judged.near), ("far", judged.far))
        for label, rows in chosen.items()
        for place, row in enumerate(rows.tolist(), start=1)
    )
    _write_csv(path, ("label", "kind", "place", "id", "part"), lines)


def write_report(
    path: Path, given: Labelled, judged: Judged, acts: Mapping[int, str], counts: Mapping[str, Any]
) -> None:
    """Write what was found and done in words and tables, Markdown."""
    ids = given.rows.source_index
    pairs = Counter((s.given, s.suggested) for s in judged.suspects)
    totals = given.rows.class_counts()
    doubted = Counter(s.given for s in judged.suspects)
    lines = [
        f"# Labels of {given.config.source.name}",
        "",
        f"{counts['maps']:,} maps, {counts['suspects']:,} suspected labels; {_done(counts)}"
        + _outside(counts.get("in_no_part", 0)),
        "",
        "Every map was judged by models that saw no map of its lot and none of the same dies; maps of other",
        "parts than test by models that saw no map of part test.",
        "",
        "A score above 0.5 says that other lots speak for another label; it is no probability of an error.",
        "Look at the maps before anything is changed: some show two patterns, and some classes shade into",
        "one another.",
        "",
        "![the first suspects](sheet.png)",
        "",
        "## Maps that carry two labels",
        "",
    ]
    lines += _conflict_lines(judged, ids) or ["None: no two maps with the same dies disagree."]
    if judged.disputed:
        named = ", ".join(f"{int(ids[row])} {given.rows.labels[row]}" for row in judged.disputed)
        lines += ["", f"The source says of these that the same map carries another label elsewhere: {named}."]
    lines += ["", "## By class", ""]
    lines += _table(
        ("class", "maps", "suspected", "share"),
        ((name, f"{n:,}", doubted[name], f"{doubted[name] / n:.1%}") for name, n in totals.items()),
    )
    if judged.rare:
        lines += ["", f"Not judged, with fewer than {LEAST_MAPS} maps: {', '.join(judged.rare)}."]
    lines += ["", "## What is taken for what", ""]
    lines += _table(
        ("given", "suggested", "suspects"), ((*pair, count) for pair, count in pairs.most_common(TOP))
    )
    lines += ["", f"## The first {TOP} suspects", "", "All are in suspects.csv.", ""]
    shown = list(suspect_lines(given, judged, acts))[:TOP]
    lines += _table(SUSPECT_COLUMNS, shown)
    lines += [
        "",
        "## Typical and untypical maps",
        "",
        "Left, the maps nearest to the centres of their class's clusters; right, the farthest.",
        "",
        "![near and far maps of each class](representatives.png)",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _done(counts: Mapping[str, Any]) -> str:
    if counts["relabelled"]:
        return f"{counts['relabelled']:,} got the suggested label."
    return f"{counts['dropped']:,} were left out." if counts["dropped"] else "nothing was changed."


def _outside(count: int) -> str:
    return f" {count:,} are in no part: their lot or a copy of them is in another." if count else ""


def _conflict_lines(judged: Judged, ids: Sequence[int] | Any) -> list[str]:
    lines = []
    for conflict in judged.conflicts:
        told = ", ".join(
            f"{int(ids[r])} {name}" for r, name in zip(conflict.rows, conflict.labels, strict=True)
        )
        lines.append(f"- {told}" + ("" if conflict.exact else " (turned or mirrored)"))
    return lines


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {' | '.join(str(value).replace('|', '/') for value in row)} |" for row in rows]


def _write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
