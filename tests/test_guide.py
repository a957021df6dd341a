"""Every snippet of the user's guide runs, section by section."""

import pathlib
import re

import pytest

DOCS = pathlib.Path(__file__).parent.parent / "docs"
GUIDE = (DOCS / "guide.md").read_text()
SECTIONS = re.split(r"^## ", GUIDE, flags=re.M)[1:]


def snippets(section):
    return re.findall(r"```python\n(.*?)```", section, re.S)


def title(section):
    return section.partition("\n")[0]


@pytest.mark.parametrize("section", SECTIONS, ids=title)
def test_section_runs(section):
    """One namespace a section; each snippet asserts what it is there to show."""
    names = {"__name__": "guide"}
    for number, code in enumerate(snippets(section)):
        assert re.search(r"^assert ", code, re.M), code
        exec(compile(code, f"guide.md, {title(section)}, {number}", "exec"), names)


def test_the_guide_is_whole():
    """No snippet outside the sections, and every link leads somewhere."""
    assert sum(len(snippets(s)) for s in SECTIONS) == GUIDE.count("```python")
    assert GUIDE.count("```") == 2 * GUIDE.count("```python")
    assert all(snippets(section) for section in SECTIONS)
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", title(s).lower()).replace(" ", "-") for s in SECTIONS
    }
    for target in re.findall(r"\]\((?!http)([^)]+)\)", GUIDE):
        file, _, anchor = target.partition("#")
        if file:
            assert (DOCS / file).exists(), target
        else:
            assert anchor in anchors, target
