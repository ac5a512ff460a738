"""Links in README.md and docs/ lead to files and headings that exist, and so do the paths that they name as code."""

import re

import pytest
from conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMED = re.compile(r"`(?:python )?((?:vae|tests|benchmarks|docs|notebooks)/[\w./]+)|(?<!\w)python ([\w/]+\.py)")


def list_headings(text: str) -> set[str]:
    """Return the anchors that GitHub makes of the headings: lower case, no punctuation, dashes for spaces."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        path, _, heading = target.partition("#")
        place = page.parent / path if path else page
        if not place.exists() or (heading and heading not in list_headings(place.read_text(encoding="utf-8"))):
            lost.append(target)
    if page.name != "experiments.md":  # a log also names scripts of its time
        lost += [name for name in map("".join, NAMED.findall(text)) if not (ROOT / name).exists()]
    assert lost == []
