"""Rewriting is tested against a scripted server on loopback, which is no language model."""

from __future__ import annotations

import functools
import json
import math
import re
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.train.vqa.conftest import ScriptedModel, completion, drafted
from train.artefact import read_provenance
from train.data_commands import data
from train.synthetic import wafers
from train.vqa.build import VqaConfig, build_vqa
from train.vqa.causes import default_causes
from train.vqa.endpoint import GIVE_UP, KEY_VARIABLE, Endpoint, EndpointSettings
from train.vqa.replies import ReplyCache
from train.vqa.rewrite import Draft, Report, fault, rewrite
from wafervlm.errors import ConfigError, ProviderError, UsageError
from wafervlm.geometry import measure

CAUSES = default_causes()
# A disc in the middle of a wafer.
DIES = wafers(["Center"], seed=4)[0].dies
TEXT = (
    "1. Spatial distribution: The failing dies lie mostly in the center zone.\n"
    "2. Morphology: There is no ring.\n"
    "3. Root-cause candidates: candidate: CMP uniformity; candidate: gas flow."
)
OTHER = (
    "1. Spatial distribution: Most failing dies are in the center zone.\n"
    "2. Morphology: No ring is visible.\n"
    "3. Root-cause candidates: candidate: gas flow; candidate: CMP uniformity."
)


def draft(name: str = "a") -> Draft:
    return Draft(name, "Describe.", TEXT, "Center", functools.partial(measure, DIES))


def settings(url: str, **values: Any) -> EndpointSettings:
    return EndpointSettings(url, "scripted", **{"retries": 0, "timeout": 5.0, "workers": 1, **values})


def asked(url: str, cache: Path, count: int = 1, **values: Any) -> tuple[dict[str, str], Report]:
    chosen = settings(url, **values)
    endpoint = Endpoint(chosen, ReplyCache(cache))
    drafts = [
        Draft(str(n), f"Describe {n}.", TEXT, "Center", functools.partial(measure, DIES))
        for n in range(count)
    ]
    return rewrite(drafts, endpoint, CAUSES, workers=chosen.workers)


def test_other_words_for_the_same_may_stand() -> None:
    assert fault(draft(), OTHER, CAUSES) is None
    assert fault(draft(), TEXT, CAUSES) is None


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("center zone", "edge zone", "contradicts the dies"),
        ("There is no ring", "The failing dies form a closed ring", "contradicts the dies"),
        ("There is no ring.", "There is no ring. There is no line.", "says what the reference does not"),
        ("There is no ring.", "The shape is plain.", "leaves out a claim"),
        ("candidate: gas flow", "candidate: wafer handling", "names another candidate"),
        ("; candidate: gas flow", "", "leaves out a candidate"),
        ("candidate: gas flow", "caused by gas flow", "names a cause as a fact"),
        ("There is no ring.", "There is no ring, so it is a Donut.", "names another class"),
        ("1. Spatial distribution: ", "", "lost its form"),
        ("There is no ring.", "There is no ring. " + "Look at it well. " * 60, "too long"),
    ],
)
def test_a_text_that_says_something_else_is_dropped(old: str, new: str, reason: str) -> None:
    assert old in TEXT
    assert fault(draft(), TEXT.replace(old, new), CAUSES) == reason


def test_what_nothing_holds_to_the_dies_is_not_asked(model: ScriptedModel, tmp_path: Path) -> None:
    def about(text: str) -> Draft:
        return Draft("a", "Which step?", text, "Center", lambda: measure(DIES))

    step = CAUSES.patterns["Center"].candidates[0].step
    model.script = lambda body: completion("banana")
    drafts = [about("It has no clock position."), about(f"Candidate step: {step}.")]
    endpoint = Endpoint(settings(model.url), ReplyCache(tmp_path / "kept"))
    texts, report = rewrite(drafts, endpoint, CAUSES, workers=1)
    assert not texts and dict(report.dropped) == {"leaves out a candidate": 1}
    assert fault(draft(), OTHER.replace("ring", "ring\x1b[31m"), CAUSES) == "holds control characters"


def test_replies_of_any_kind_are_kept_and_counted(model: ScriptedModel, tmp_path: Path) -> None:
    def odd(body: dict[str, Any]) -> tuple[int, Any]:
        status, reply = completion("half a character: \ud800")
        return status, {**reply, "usage": {"prompt_tokens": "many", "completion_tokens": 1e999}}

    model.script = odd
    for cached in (0, 1):
        _, report = asked(model.url, tmp_path / "kept")
        assert report.dropped.total() == 1 and report.from_cache == cached
        assert report.prompt_tokens == report.completion_tokens == 0
    kept = (tmp_path / "kept").read_text(encoding="utf-8")
    for text in ("5", "null"):
        (tmp_path / "wrong").write_text(re.sub(r'"text": "[^"]*"', f'"text": {text}', kept), encoding="utf-8")
        with pytest.raises(ConfigError, match=r"line 1 of .* is no kept reply"):
            ReplyCache(tmp_path / "wrong")


def test_an_endpoint_that_refuses_all_is_left_with_several_workers(
    model: ScriptedModel, tmp_path: Path
) -> None:
    model.script = lambda body: (400, {"error": {"message": "no"}})
    with pytest.raises(ProviderError, match="took none"):
        asked(model.url, tmp_path / "cache", 10 * GIVE_UP, workers=4)
    assert len(model.asked) <= GIVE_UP + 4


@pytest.mark.parametrize("name", ["per_minute", "timeout", "temperature"])
def test_settings_that_are_no_numbers_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        settings("http://localhost/v1", **{name: math.nan})


@pytest.mark.parametrize("key", ["", "cl\u00e9"])
def test_a_key_that_is_none(key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    with nullcontext() if not key else pytest.raises(UsageError, match="no key has"):
        Endpoint(settings("http://localhost/v1"), ReplyCache(tmp_path / "kept"))


@pytest.mark.parametrize("label", ["Center", "Edge-Loc", "Donut"])
def test_the_class_that_an_answer_names_stays(label: str) -> None:
    told = "The failing dies lie mostly in the center zone."
    typed = Draft("a", "Which pattern?", f"Pattern type: {label}. {told}", label, lambda: measure(DIES))
    kept = f"Pattern type: {label}. Most failing dies are in the center zone."
    assert fault(typed, kept, CAUSES) == fault(typed, typed.text, CAUSES)
    for lost in (told, f"It is a pattern of a known type. {told}"):
        assert fault(typed, lost, CAUSES) == "leaves out the class"
    assert fault(typed, kept.replace(label, "Near-full"), CAUSES) == "names another class"


def test_a_kept_reply_is_counted_and_never_paid_for_twice(model: ScriptedModel, tmp_path: Path) -> None:
    model.script = lambda body: completion(OTHER)
    texts, report = asked(model.url, tmp_path / "cache", 3)
    assert texts == {str(n): OTHER for n in range(3)}
    assert (report.kept, report.prompt_tokens, report.completion_tokens) == (3, 300, 60)
    assert report.cost((1.0, 2.0)) == pytest.approx(420e-6) and report.cost(None) is None
    again, second = asked(model.url, tmp_path / "cache", 3)
    assert again == texts and len(model.asked) == 3
    assert (second.kept, second.from_cache, second.prompt_tokens) == (3, 3, 0)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (completion(None, refusal="No."), "refused"),
        (completion("I'm sorry, I can't help with that."), "refused"),
        (completion("", "content_filter"), "refused"),
        (completion(OTHER[:80], "length"), "cut off"),
        (completion("  "), "empty"),
        (completion(TEXT.replace("center", "edge")), "contradicts the dies"),
        (completion(None), "nonsense"),
        ((200, {"choices": []}), "nonsense"),
        ((200, {"answer": 42}), "nonsense"),
        ((200, b"<html>busy</html>"), "nonsense"),
        ((500, {"error": "boom"}), "status 500"),
        ((429, {"error": "slow down"}), "status 429"),
    ],
)
def test_a_reply_that_is_none_is_counted_by_its_reason(
    model: ScriptedModel, tmp_path: Path, answer: tuple[int, Any], reason: str
) -> None:
    model.script = lambda body: answer
    texts, report = asked(model.url, tmp_path / "cache")
    assert texts == {} and dict(report.dropped) == {reason: 1}


def test_what_was_paid_for_is_kept_though_it_was_dropped(model: ScriptedModel, tmp_path: Path) -> None:
    model.script = lambda body: completion(None, refusal="No.")
    asked(model.url, tmp_path / "cache")
    _, report = asked(model.url, tmp_path / "cache")
    assert len(model.asked) == 1 and dict(report.dropped) == {"refused": 1} and report.from_cache == 1


def test_a_slow_endpoint_is_left(model: ScriptedModel, tmp_path: Path) -> None:
    def slow(body: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(0.6)
        return completion(OTHER)

    model.script = slow
    _, report = asked(model.url, tmp_path / "cache", timeout=0.2)
    assert dict(report.dropped) == {"too slow": 1} and report.missing == 1


def test_an_endpoint_that_is_down_is_not_asked_for_ever(model: ScriptedModel, tmp_path: Path) -> None:
    model.close()
    _, report = asked(model.url, tmp_path / "cache", GIVE_UP + 20)
    assert report.dropped["cannot be reached"] >= GIVE_UP
    assert report.dropped["not asked, the endpoint is down"] >= 15
    assert report.dropped.total() == report.missing == GIVE_UP + 20
    model.close = lambda: None  # type: ignore[method-assign]


def test_a_request_that_is_at_fault_does_not_mean_that_the_endpoint_is_down(
    model: ScriptedModel, tmp_path: Path
) -> None:
    model.script = lambda body: (
        completion(OTHER) if len(model.asked) == 1 else (400, {"error": {"message": "too long"}})
    )
    _, report = asked(model.url, tmp_path / "cache", GIVE_UP + 5, workers=1)
    assert dict(report.dropped) == {"status 400": GIVE_UP + 4} and report.missing == 0
    # One amid failures shows that the endpoint is up.
    model.script = lambda body: (400 if len(model.asked) % GIVE_UP == 0 else 503, {"error": "no"})
    _, report = asked(model.url, tmp_path / "cache", 3 * GIVE_UP)
    assert report.dropped["not asked, the endpoint is down"] == 0
    assert report.missing == report.dropped["status 503"] > 2 * GIVE_UP


def test_an_endpoint_that_takes_no_request_is_an_error(model: ScriptedModel, tmp_path: Path) -> None:
    model.script = lambda body: (400, {"error": {"message": "max_tokens is 4 at most"}})
    with pytest.raises(ProviderError, match=r"refused \d+ requests and took none.*400.*4 at most.*check"):
        asked(model.url, tmp_path / "cache", 3 * GIVE_UP)
    assert len(model.asked) < 3 * GIVE_UP
    # Requests that are under way may yet be taken.
    slow = [threading.Event()]

    def taken_late(body: dict[str, Any]) -> tuple[int, Any]:
        if len(model.asked) == 1:
            slow[0].wait(5)
            return completion(OTHER)
        if len(model.asked) > GIVE_UP:
            slow[0].set()
        return 400, {"error": {"message": "too long"}}

    model.asked.clear()
    model.script = taken_late
    _, report = asked(model.url, tmp_path / "late", GIVE_UP + 6, workers=2)
    assert report.kept == 1 and report.dropped["status 400"] == GIVE_UP + 5
    # What was taken before says that it is these requests, not the endpoint.
    model.script = lambda body: completion(OTHER)
    asked(model.url, tmp_path / "cache", 1)
    model.script = lambda body: (400, {"error": {"message": "too long"}})
    _, report = asked(model.url, tmp_path / "cache", GIVE_UP + 5, workers=1)
    assert report.dropped["status 400"] == GIVE_UP + 4 and report.from_cache == 1


def test_after_a_burst_of_refusals_to_serve_the_rest_may_be_asked_again(
    model: ScriptedModel, tmp_path: Path
) -> None:
    def busy(body: dict[str, Any]) -> tuple[int, Any]:
        return completion(OTHER) if len(model.asked) <= 3 else (429, {"error": "slow down"})

    model.script = busy
    texts, report = asked(model.url, tmp_path / "cache", GIVE_UP + 10)
    assert len(texts) == 3 and len(model.asked) == 3 + GIVE_UP
    assert report.missing == GIVE_UP + 7 and report.dropped["not asked, the endpoint is down"] == 7
    model.script = lambda body: completion(OTHER)
    texts, report = asked(model.url, tmp_path / "cache", GIVE_UP + 10)
    assert len(texts) == GIVE_UP + 10 and (report.missing, report.from_cache) == (0, 3)


def test_an_endpoint_that_is_down_takes_nothing_from_what_is_kept(
    model: ScriptedModel, tmp_path: Path
) -> None:
    """Kept replies stand before, amid and behind those that cannot be had."""
    model.script = lambda body: completion(OTHER)
    asked(model.url, tmp_path / "cache", 2)
    endpoint = Endpoint(settings(model.url), ReplyCache(tmp_path / "cache"))
    model.script = lambda body: (503, {"error": "down"})
    known, unknown = (Draft(n, f"Describe {n}.", TEXT, "Center", draft().measured) for n in ("0", "new"))
    drafts = [known, unknown] * (GIVE_UP + 2)
    _, report = rewrite(drafts, endpoint, CAUSES, workers=1)
    assert report.kept == report.from_cache == GIVE_UP + 2
    assert dict(report.dropped) == {"status 503": GIVE_UP, "not asked, the endpoint is down": 2}


def test_a_completion_without_text_is_paid_for_once(model: ScriptedModel, tmp_path: Path) -> None:
    model.script = lambda body: completion(None)
    _, first = asked(model.url, tmp_path / "cache")
    assert first.prompt_tokens == 100 and first.missing == 0
    _, second = asked(model.url, tmp_path / "cache")
    assert len(model.asked) == 1 and dict(second.dropped) == {"nonsense": 1}


def test_a_failed_request_is_tried_again(model: ScriptedModel, tmp_path: Path) -> None:
    model.script = lambda body: completion(OTHER) if len(model.asked) > 1 else (503, {"error": "busy"})
    _, report = asked(model.url, tmp_path / "cache", retries=2)
    assert report.kept == 1 and len(model.asked) == 2


def test_requests_keep_the_rate(model: ScriptedModel, tmp_path: Path) -> None:
    model.script = lambda body: completion(OTHER)
    begun = time.monotonic()
    asked(model.url, tmp_path / "cache", 4, per_minute=600, workers=2)
    assert time.monotonic() - begun >= 0.3


def test_a_wrong_key_ends_it_with_what_to_check(model: ScriptedModel, tmp_path: Path) -> None:
    model.script = lambda body: (401, {"error": {"message": "bad key"}})
    with pytest.raises(ProviderError, match="check the URL, the model's name and the key in"):
        asked(model.url, tmp_path / "cache", 3)


def test_the_dataset_holds_what_was_kept_and_the_rest_as_it_was(
    model: ScriptedModel, words_folder: Path, synthetic_dataset: Path, tmp_path: Path
) -> None:
    """The scripted model words one claim otherwise, and lies about another."""

    def script(body: dict[str, Any]) -> tuple[int, Any]:
        text = drafted(body)
        return completion(text.replace("lie mostly in", "are mainly in").replace("dense", "sparse"))

    model.script = script
    config = VqaConfig(synthetic_dataset, per_class=1, endpoint=settings(model.url, workers=4))
    counts, _ = build_vqa(config, tmp_path / "words")
    told = counts["rewrite"]
    assert told["kept"] + sum(told["dropped"].values()) == told["asked"]
    # The same text about two wafers is paid for once.
    assert len(model.asked) + told["from_cache"] == told["asked"] > len(model.asked)
    assert told["dropped"]["contradicts the dies"] > 5 and told["prompt_tokens"] > 0
    entries = json.loads((tmp_path / "words" / "descriptions.json").read_text(encoding="utf-8"))
    texts = [entry["descriptions"]["full"] for entry in entries]
    assert any("are mainly in" in text for text in texts)
    before = {
        entry["id"]: entry["descriptions"]["full"]
        for entry in json.loads((words_folder / "descriptions.json").read_text(encoding="utf-8"))
    }
    untouched = [entry for entry in entries if "dense" in before[entry["id"]]]
    assert untouched
    assert all(entry["descriptions"]["full"] == before[entry["id"]] for entry in untouched)
    assert (tmp_path / "words.replies.jsonl").is_file()


def test_an_outage_is_an_error_and_the_same_command_completes(
    model: ScriptedModel, synthetic_dataset: Path, tmp_path: Path
) -> None:
    def up(body: dict[str, Any]) -> tuple[int, Any]:
        return completion(drafted(body).replace("lie mostly in", "are mainly in"))

    out = tmp_path / "words"
    words = ["vqa", str(synthetic_dataset), "-o", str(out), "--per-class", "1", "--rewrite", model.url]
    words += ["--model", "scripted", "--retries", "0", "--workers", "1", "--json"]
    model.script = lambda body: up(body) if len(model.asked) <= 5 else (503, {"error": "down"})
    failed = CliRunner().invoke(data, words)
    told = json.loads(failed.stdout)["rewrite"]
    kept = told["kept"]
    assert kept >= 3 and told["missing"] > 2 * GIVE_UP and isinstance(failed.exception, ProviderError)
    message = f"{told['missing']} of {told['asked']} requests to {model.url} had no reply"
    assert str(failed.exception).startswith(message)
    assert f"kept in {out}.replies.jsonl" in str(failed.exception)
    assert "next:" not in failed.stderr
    assert read_provenance(out)["parity"] == {"missing_replies": told["missing"]}
    before = (out / "descriptions.json").read_text(encoding="utf-8").count("are mainly in")

    paid, model.asked, model.script = model.asked[:5], [], up
    done = CliRunner().invoke(data, words, catch_exceptions=False)
    told = json.loads(done.stdout)["rewrite"]
    assert done.exit_code == 0 and told["missing"] == 0 and told["kept"] > 20 * kept
    assert model.asked and not any(body in model.asked for body in paid)
    assert read_provenance(out)["parity"] == {"missing_replies": 0}
    assert (out / "descriptions.json").read_text(encoding="utf-8").count("are mainly in") > before

    model.asked = []
    assert "nothing to do" in CliRunner().invoke(data, words, catch_exceptions=False).stderr
    assert not model.asked
