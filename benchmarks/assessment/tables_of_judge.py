"""Tables of what a language model said of the answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.assessment.texts import Table, number, span


def judge_tables(judge: Mapping[str, Any]) -> Iterator[Table]:
    """The judge's scores, the rules aligned with it, its prompts, and what it cost."""
    yield _scores(judge)
    yield from _alignment(judge["alignment"])
    yield _prompts(judge)
    yield _costs(judge)


def judge_summary(judge: Mapping[str, Any]) -> Table:
    """What a command prints of the judge: what came of the requests, and how the rules rank with it."""
    scores = judge["kept"] + sum(judge["excluded"].values())
    rows = [("scores kept", f"{judge['kept']} of {scores}"), *_left_out(judge)]
    rows += [("cost of this run", "-" if judge["cost"] is None else f"{judge['cost']:.4f}")]
    found = judge["alignment"]
    if "note" in found:
        rows.append(("Spearman with the judge", found["note"]))
    for name, one in found.get("formulas", {}).items():
        rows.append((f"Spearman with the judge, {name} rule score", span(one["spearman"], number)))
    return Table("What the judge said", "", ("", judge["model"]), rows)


def judge_values(judge: Mapping[str, Any]) -> dict[str, Any]:
    """The same as plain values; ``spearman`` by formula is None where the rules could not be aligned."""
    formulas = judge["alignment"].get("formulas")
    ranks = formulas and {
        name: None if one["spearman"] is None else round(one["spearman"]["value"], 4)
        for name, one in formulas.items()
    }
    kept = ("model", "requests", "kept", "excluded", "cost")
    return {**{name: judge[name] for name in kept}, "missing": judge.get("missing", 0), "spearman": ranks}


def _left_out(judge: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was left out, by reason, and what of it may still come."""
    rows = [(f"left out: {reason}", str(count)) for reason, count in judge["excluded"].items()]
    # A report of an older run does not say.
    if judge.get("missing"):
        rows.append(("requests that may have a reply later", str(judge["missing"])))
    return rows


def _scores(judge: Mapping[str, Any]) -> Table:
    rows = []
    for prompt, subjects in judge["subjects"].items():
        dimensions = next((list(one) for one in subjects.values() if one), [])
        for key in dimensions:
            cells = [span(one and one[key], number) for one in subjects.values()]
            rows.append((f"{prompt}, {key.replace('_', ' ')}", *cells))
    names = next(iter(judge["subjects"].values()))
    note = (
        f"{judge['model']}, 0 to 1 of 10 points; {judge['maps']} maps, {judge['repeats']} readings of each. "
        "The answers to one wafer are read together, in an order drawn anew."
    )
    return Table("Scores of the judge", note, ("", *names), rows)


def _alignment(found: Mapping[str, Any]) -> Iterator[Table]:
    if "note" in found:
        yield Table("Rule score against the judge", found["note"], (), ())
        return
    rows = [
        (name, *(span(one[key], number) for key in ("spearman", "kendall")))
        for name, one in found["formulas"].items()
    ]
    fitted = found["formula"]
    weights = ", ".join(f"{name} {fitted[name]:.2f}" for name in ("hit", "avoid", "spatial", "morphology"))
    fuzzy = "to the letter" if fitted["fuzzy"] is None else f"similar from {fitted['fuzzy']:.2f} on"
    note = (
        f"Fitted on {found['fitted_on']} answers (Spearman there {found['spearman_where_fitted']:.3f}), "
        f"reported on {found['reported_on']} of other lots. Fitted: {weights}, "
        f"root_cause {fitted['root_cause']:.2f}, phrases {fuzzy}."
    )
    yield Table("Rule score against the judge", note, ("formula", "Spearman", "Kendall"), rows)


def _prompts(judge: Mapping[str, Any]) -> Table:
    found = judge["prompt_sensitivity"]
    rows = [("between the prompts", span(found["spearman"], number))]
    if found["mean_difference"] is not None:
        rows.append(("mean difference of the scores", number(found["mean_difference"])))
    for formula, prompts in found["rules"].items():
        rows += [(f"{formula} rule score, {name}", span(one, number)) for name, one in prompts.items()]
    rows.append(("share of an answer's claims that hold", span(judge["claims"], number)))
    note = f"Spearman's rank correlation, on {found['answers']} answers that both prompts scored."
    return Table("Sensitivity to the judge's prompt", note, ("", "Spearman"), rows)


def _costs(judge: Mapping[str, Any]) -> Table:
    shown = {
        "requests": judge["requests"],
        "from disk": judge["from_cache"],
        "prompt tokens paid in this run": judge["prompt_tokens"],
        "answer tokens paid in this run": judge["completion_tokens"],
        "cost": "-" if judge["cost"] is None else f"{judge['cost']:.4f}",
        "scores kept": judge["kept"],
        **dict(_left_out(judge)),
        **{f"mean score at place {letter}": f"{mean:.3f}" for letter, mean in judge["by_letter"].items()},
    }
    if judge["between_readings"] is not None:
        shown["spread between readings of one answer"] = f"{judge['between_readings']:.3f}"
    note = "What was asked, what was left out and why."
    return Table("The judge's replies", note, ("", "count"), [(key, str(one)) for key, one in shown.items()])
