"""The rules by which phrases are read as claims: how failing dies are spread, and what stands out of them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from wafervlm.claims.clauses import Text
from wafervlm.claims.rules import Found, Match, Rule, found
from wafervlm.claims.vocabulary import DIES, FAILURES, NUMBER, ORDINALS, number

_WAFER = r"(?:wafer|map|surface|wafer surface|wafer map)"
_SCATTER = re.compile(
    rf"\b(?P<alone>(?:stand|stands|lie|lies|are|fail|occur|appear|sit) (?:mostly |mainly |largely |all "
    rf"|almost all |not )*"
    rf"(?:alone|isolated|singly|individually|solitary|one by one|on their own)|do not touch(?: each other"
    rf"| one another)?"
    rf"|(?:isolated|single|solitary|lone|individual) (?:{FAILURES}|{DIES} fail)|(?:isolated|single|lone"
    rf"|solitary) {DIES}\b|"
    rf"have no failing neighbou?rs?)"
    rf"|\b(?P<spread>(?:(?:evenly|uniformly|randomly|widely|sparsely|irregularly|more or less|are|is|lie) )*"
    rf"(?:spread|scattered|distributed|dispersed|strewn|sprinkled|appear|occur|found)(?: (?:out|evenly"
    rf"|uniformly|randomly|irregularly|widely|everywhere))*"
    rf" (?:over|across|throughout|all over|on|about) (?:(?:the )?(?:whole|entire|full|complete"
    rf"|all of the) )?(?:the )?{_WAFER}"
    rf"|all over the {_WAFER}|(?:over|across|throughout) the (?:whole|entire|full) {_WAFER}"
    rf"|randomly (?:scattered|distributed|spread|placed)|(?:scattered|spread) (?:randomly|everywhere"
    rf"|all over)|random scatter|"
    rf"no preferred (?:position|location|place|zone|region)|everywhere on the {_WAFER})\b"
)


def _scatter(m: Match, text: Text) -> Iterator[Found]:
    words = m.group()
    fixed = False if words.startswith(("do not", "have no", "no ")) else True if " not " in words else None
    yield found(m, "scatter", "alone" if m["alone"] else "spread", fixed)


_REST = (
    r"(?:elsewhere|outside(?: of)?(?: the| this| that| it| these)?(?: main| largest)?(?: pattern| cluster"
    r"| clusters| structure| "
    r"structures| ring| line| region| area)?|in the background|apart from (?:it|that|this|the \w+)|"
    r"(?:on|in|over|across) the (?:rest|remainder)(?: of the (?:wafer|map))?|away from (?:it"
    r"|the (?:pattern|cluster|ring|line)))"
)


def _amount(tail: str) -> str:
    """How many, in groups whose names end in ``tail``."""
    return (
        rf"(?:(?P<few{tail}>(?:only )?(?:a )?(?:very )?few|hardly any|almost no|scarcely any|no|no other|"
        r"only single|isolated|a handful of|little|low|weak|clean|sparse|faint)"
        rf"|(?P<some{tail}>some|several|a number of|moderate|a moderate number of|occasional)"
        rf"|(?P<many{tail}>many|numerous|a lot of|lots of|plenty of|a large number of|heavy|strong|high"
        rf"|dense))"
    )


_BACKGROUND = re.compile(
    rf"\b{_amount('')} (?:other |isolated |further |scattered |single |additional |random )*(?:{FAILURES}"
    rf"|{DIES}(?: fail(?:ing)?)?|noise)"
    rf"(?: (?:can be seen|are seen|appear|lie|are|are found|fail|occur|stand|remain|sit|scattered|is"
    rf"|seen))* {_REST}"
    rf"|\b{_REST},? (?:there are |there is "
    rf"|we see )?{_amount('2')} "
    rf"(?:other |isolated |further |scattered |single )*(?:{FAILURES}|{DIES} fail|noise)"
    rf"|\bthe (?P<rest>rest|remainder|remaining area|background)(?: of the (?:wafer|map))? (?:is|stays"
    rf"|remains|looks|appears) "
    rf"(?:(?:mostly|largely|almost|nearly|completely|entirely|quite|relatively|very) )*(?P<state>clear"
    rf"|clean|empty|intact|good|low|quiet|noisy|busy|high)\b"
    rf"(?: of (?:failing dies|failures|defects))?"
    rf"|\b{_amount('3')} "
    rf"(?:background(?: (?:noise|failures))?|noise in the background)\b"
)


def _background(m: Match, text: Text) -> Iterator[Found]:
    if m["rest"]:
        value = "many" if m["state"] in ("noisy", "busy", "high") else "few"
    else:
        value = next(
            name for name in ("few", "some", "many") if any(m[name + tail] for tail in ("", "2", "3"))
        )
    none = m.group().startswith(("no ", "hardly", "almost no", "scarcely")) or re.search(
        r", (?:there (?:is|are) )?no ", m.group()
    )
    yield found(m, "background", value, False if none else None)


_PATTERN = re.compile(
    r"\bno (?:(?:clear|systematic|obvious|visible|distinct|spatial|recogni[sz]able|defect|failure"
    r"|particular|significant|"
    r"dominant|coherent|discernible|evident) )*(?:pattern|structure|signature)s?\b(?: stands? out| (?:is"
    r"|are) (?:visible|seen|present|found|apparent))?"
    r"|\b(?P<some>an? (?:clear |distinct )*(?:pattern|structure|signature) stands out)\b"
    r"|\b(?P<not>(?:does not|do not|doesn't|don't) (?:form|show) (?:a|any) (?:(?:clear|systematic"
    r"|distinct|particular) )*(?:pattern|structure))\b"
)


def _pattern(m: Match, text: Text) -> Iterator[Found]:
    yield found(m, "pattern", "any", not m["some"])


_NTH = rf"(?:{'|'.join(ORDINALS)}|\d+(?:st|nd|rd|th))"
_REPEAT = re.compile(
    rf"\b(?:repeat(?:s|ed|ing|edly)?|recur(?:s|ring)?|periodic(?:ally)?|period|reticle"
    rf"|every)\b[^.,;\n\x00]{{0,30}}?"
    rf"\b(?:every|of) (?:(?P<n>{NUMBER}|{_NTH})[ -](?P<axis>rows?"
    rf"|columns?)(?: and (?:every )?(?P<n2>{NUMBER}|{_NTH})[ -](?P<axis2>rows?|columns?))?)"
    rf"|\bevery (?P<n3>{_NTH}) (?P<axis3>row|column)\b"
    rf"|\b(?:repeat(?:s|ed|ing|edly)?|recur(?:s|ring)?|periodic(?:ally)?|reticle pattern)\b(?: pattern"
    rf"| across the wafer)?"
)


def _repeat(m: Match, text: Text) -> Iterator[Found]:
    period = {"row": 0, "column": 0}
    for tail in ("", "2", "3"):
        if m["n" + tail]:
            words = m["n" + tail]
            n = ORDINALS.get(words) or int(
                number(re.sub(r"(?:st|nd|rd|th)$", "", words) if words[0].isdigit() else words)
            )
            period[m["axis" + tail].rstrip("s")] = n
    yield found(m, "repeat", (period["row"], period["column"]) if any(period.values()) else "any")


_SYMMETRY = re.compile(
    r"\b(?P<non>asymmetr(?:ic(?:al)?|y)|non-?symmetric)\b"
    r"|\b(?P<rotational>rotational(?:ly)? symmetr\w+|radial(?:ly)? symmetr\w+|circular(?:ly)? symmetr\w+"
    r"|symmetr\w+ (?:about|around) the cent\w+)"
    r"|\b(?P<mirror>mirror(?:[ -]symmetr\w+|ed)|left[- ]right symmetr\w+|bilateral(?:ly)? symmetr\w+"
    r"|axial(?:ly)? symmetr\w+|symmetr\w+ about an axis)"
    r"|\bsymmetr(?:ic(?:al)?|y)\b"
)


def _symmetry(m: Match, text: Text) -> Iterator[Found]:
    value = "rotational" if m["rotational"] else "mirror" if m["mirror"] else "any"
    yield found(m, "symmetry", value, True if m["non"] else None)


BACKGROUND = Rule(
    ("elsewhere", "outside", "background", "rest", "remain", "apart from", "away from"),
    _BACKGROUND,
    _background,
)
SPREAD = (
    Rule(("pattern", "structure", "signature"), _PATTERN, _pattern),
    Rule(("repeat", "recur", "period", "reticle", "every"), _REPEAT, _repeat),
    Rule(("symmetr", "mirror"), _SYMMETRY, _symmetry),
    Rule(
        (
            "alone",
            "isolat",
            "singl",
            "spread",
            "scatter",
            "distribut",
            "dispers",
            "strewn",
            "sprinkl",
            "all over",
            "across",
            "throughout",
            "over the",
            "random",
            "solitary",
            "lone",
            "touch",
            "neighb",
            "individual",
            "own",
            "preferred",
            "one by one",
            "everywhere",
            "found",
            "occur",
            "appear",
        ),
        _SCATTER,
        _scatter,
    ),
)
