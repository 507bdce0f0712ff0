"""The documents say what is true: every setting is described, every link leads somewhere."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import msgspec
import pytest

from edge_runtime.config import Config

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted((ROOT / "examples").rglob("*.md"))


def keys(struct: type) -> set[str]:
    found = set()
    for name, kind in typing.get_type_hints(struct).items():
        inner = [kind, *typing.get_args(kind)]
        below = [t for t in inner if isinstance(t, type) and issubclass(t, msgspec.Struct)]
        found |= {name} if not below else set()
        for t in below:
            found |= keys(t)
    return found


def test_every_setting_is_in_the_configuration_page() -> None:
    described = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "configuration.md").read_text()))

    assert keys(Config) - described == set()
    assert len(keys(Config)) > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]

    assert [link for link in targets if not (page.parent / link).exists()] == []


def places(page: Path) -> set[str]:
    """What a link can name inside a page: its headings as GitHub writes them, and names given by hand."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings} | set(
        re.findall(r'<a name="([^"]+)">', text)
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_into_pages_lead_to_a_place_in_them(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#:]*\.md)?#([^)]+)\)", text)

    assert [link for link in links if link[1] not in places(page.parent / link[0] if link[0] else page)] == []
