"""An HTML page, checked while it is parsed."""

import re
from collections import Counter
from html.parser import HTMLParser

_VOID = {"meta"}


class Page(HTMLParser):
    """A page, checked while it is parsed: every element is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.attributes.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("td", "th"):
            self.tables[-1][-1].append(data)
        if self._open and self._open[-1] not in ("style", "text"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.attributes)


def assert_stands_alone(text: str) -> Page:
    """Parse a page and check that it asks for nothing from elsewhere and that its ids are sound."""
    page = Page(text)
    ids = [attrs["id"] for _, attrs in page.attributes if "id" in attrs]
    assert max(Counter(ids).values(), default=1) == 1
    wanted = set(re.findall(r"url\(#([^)]*)\)", text))
    for tag, attrs in page.attributes:
        assert tag not in ("script", "link", "img", "iframe", "object", "base", "image")
        assert not [name for name in attrs if name.startswith("on") or name == "src"]
        if "href" in attrs:
            target = attrs["href"] or ""
            assert target.startswith("#")
            wanted.add(target[1:])
    assert wanted <= set(ids)
    assert "@import" not in text
    assert text.count("url(") == text.count("url(#")
    return page
