"""What a text cites, from one API's words into another's by way of chat's `url_citation`.

Anthropic tells the passage that was read, OpenAI the piece of the answer that rests on it: that is the block which
cites. What has no address, a document of the prompt, is a page without a URL in chat, a file in the Responses API.
"""

from __future__ import annotations

from typing import Any

from gateway.wire.call_ids import MARK, is_carrier

Json = dict[str, Any]


def annotations_of(citations: Any, begins: int, ends: int) -> list[Json]:
    """Anthropic's citations as chat's, of the characters from `begins` to `ends` of the answer."""
    told = citations if isinstance(citations, list) else []
    pages = [_page(one) for one in told if isinstance(one, dict)]
    place = {"start_index": begins, "end_index": ends}
    return [{"type": "url_citation", "url_citation": {**place, **page}} for page in pages]


def _page(citation: Json) -> Json:
    """`content` is OpenRouter's word for what was read there."""
    url = citation.get("url") or citation.get("source") or ""
    title = citation.get("title") or citation.get("document_title") or url
    page = {"title": title, "url": url, "content": citation.get("cited_text") or ""}
    return {**page, "file_id": citation["file_id"]} if citation.get("file_id") else page


def pages_of(annotations: Any) -> list[Json]:
    """Those of chat's annotations that cite."""
    told = annotations if isinstance(annotations, list) else []
    pages = [one.get("url_citation") for one in told if isinstance(one, dict) and one.get("type") == "url_citation"]
    return [page for page in pages if isinstance(page, dict)]


def cited(annotations: Any, before: int = 0) -> list[Json]:
    """Chat's citations as the Responses API has them. What it has no word for it would refuse in the next turn's input.
    `before`: characters of the answer that stand before the part which they are of.
    """
    return [_cited(page, before) for page in pages_of(annotations)]


def _cited(page: Json, before: int) -> Json:
    begins, ends = (max(0, _place(page.get(name)) - before) for name in ("start_index", "end_index"))
    title, url = page.get("title") or "", page.get("url") or ""
    if not url:
        return {"type": "file_citation", "file_id": page.get("file_id") or "", "filename": title, "index": ends}
    return {"type": "url_citation", "start_index": begins, "end_index": ends, "title": title, "url": url}


def _place(given: Any) -> int:
    return given if isinstance(given, int) else 0


def citations_of(annotations: Any) -> list[Json]:
    """Chat's citations of pages as Anthropic's, marked as none that it made."""
    return [
        {"type": "web_search_result_location", "cited_text": page.get("content") or "", "encrypted_index": MARK,
         "title": page.get("title"), "url": page["url"]}
        for page in pages_of(annotations) if page.get("url")
    ]  # fmt: skip


def own_citations(citations: Any) -> Any:
    """Without those that Anthropic didn't make, which it refuses."""
    if not isinstance(citations, list):
        return citations
    return [one for one in citations if not (isinstance(one, dict) and is_carrier(one.get("encrypted_index")))]
