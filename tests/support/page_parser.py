"""A strict reader of our HTML pages, with the parser of the standard library."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"br", "hr", "img", "input", "link", "meta"}  # HTML, 13.1.2: elements without an end tag
LOADS = ("src", "srcset", "href", "xlink:href", "action", "formaction", "poster", "data", "background", "style", "ping")


class Page(HTMLParser):
    """What a page has: ``text``, and ``attributes`` as (tag, name, value). Asserts that its tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        """All text, styles included; elements are told apart by a line break."""
        return "\n".join(self.texts)

    @property
    def tags(self) -> set[str]:
        return {tag for tag, _, _ in self.attributes}

    def values(self, name: str) -> list[str]:
        """The values of all attributes of that name."""
        return [value for _, found, value in self.attributes if found == name]

    def loaded(self) -> list[str]:
        """What a browser would fetch for the page by itself, data: and its own parts apart. Links are not fetched."""
        found = [
            value
            for tag, name, value in self.attributes
            if name in LOADS and not (tag == "a" and name == "href") and not value.startswith(("data:", "#"))
        ]
        styles = [value for value in found if "url(" in value.lower() or "@import" in value.lower()]
        styles += [text for text in self.texts if "@import" in text.lower() or "url(" in text.lower()]
        return [value for value in found if value not in self.values("style")] + styles
