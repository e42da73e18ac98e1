"""The glossary defines the terms of reports and help texts, and the product uses no metaphors in place of them."""

import re
from pathlib import Path

import pytest

from medserve.glossary import GLOSSARY

ROOT = Path(__file__).parents[2]
PACKAGES = ("medserve", "serve", "train", "loadtest")
METAPHORS = (
    "rulers?",
    "ledgers?",
    "knees?",
    "whoever",
    "nobody",
    "for certain",
    "hop(?:e|es|ed|ing)",
    "turns it around",
)
PATTERN = re.compile(rf"(?<![a-z])(?:{'|'.join(METAPHORS)})(?![a-z])")
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in PACKAGES
    for pattern in ("*.py", "*.toml")
    for path in (ROOT / package).rglob(pattern)
)
TERMS = """
balanced accuracy; bimodal; block; cell; certificate; closed loop; deadline; deployment; dispatch; golden images;
latency breakdown; latency from the intended start; launch; load generator; load-generator self-test; lossy; macro auc;
near tie; null runtime; open loop; percentile interval; queue bound; rate asked, delivered; resolution scaling;
saturation point; service time; slo search; steady; throughput; timing mistake; unattributed; uncorrected latency;
verdict; warm-up
"""


def metaphors(text: str) -> list[str]:
    """The metaphors in a text. Line breaks, quotes and comment signs between two words do not hide them."""
    return PATTERN.findall(re.sub(r"""[\s"'#]+""", " ", text.lower()))


def test_metaphors_are_found_in_names_strings_and_comments_but_not_inside_words() -> None:
    source = '_ruler = 1  # less for\n# certain\nprint("he hoped, it turns "\n  "it around")\n"scope, kneel"'
    assert metaphors(source) == ["ruler", "for certain", "hoped", "turns it around"]


def test_every_term_is_defined() -> None:
    assert set(TERMS.strip().replace(";\n", "; ").split("; ")) <= {term.lower() for term in GLOSSARY}


@pytest.mark.parametrize("term", GLOSSARY)
def test_a_definition_is_one_sentence_without_metaphors(term: str) -> None:
    definition = GLOSSARY[term]
    assert re.fullmatch(r"[A-Z].*[A-Za-z0-9)%]\.", definition)
    assert ". " not in definition.replace("et al. ", "")
    assert metaphors(f"{term} {definition}") == []


@pytest.mark.parametrize("source", SOURCES)
def test_the_product_uses_no_metaphors(source: str) -> None:
    assert metaphors((ROOT / source).read_text()) == []
