"""Citations of a text, translated between APIs by way of chat's `url_citation`.

Anthropic's API names the passage that was read, OpenAI's the part of the answer that rests on it, which here is the
whole text block with the citation. A document of the prompt has no address: in chat it is a page without a URL, in the
Responses API a file.
"""

from __future__ import annotations

from typing import Any

from gateway.wire.call_ids import MARK, is_carrier

Json = dict[str, Any]


def annotations_of(citations: Any, begins: int, ends: int) -> list[Json]:
    """Anthropic's citations as chat's annotations, for the characters of the answer from `begins` to `ends`."""
    listed = citations if isinstance(citations, list) else []
    pages = [_page(one) for one in listed if isinstance(one, dict)]
    place = {"start_index": begins, "end_index": ends}
    return [{"type": "url_citation", "url_citation": {**place, **page}} for page in pages]


def _page(citation: Json) -> Json:
    """Chat's fields of a cited page; `content` is OpenRouter's name of the passage that was read."""
    url = citation.get("url") or citation.get("source") or ""
    title = citation.get("title") or citation.get("document_title") or url
    page = {"title": title, "url": url, "content": citation.get("cited_text") or ""}
    return {**page, "file_id": citation["file_id"]} if citation.get("file_id") else page


def pages_of(annotations: Any) -> list[Json]:
    """The pages that chat's annotations cite."""
    listed = annotations if isinstance(annotations, list) else []
    pages = [one.get("url_citation") for one in listed if isinstance(one, dict) and one.get("type") == "url_citation"]
    return [page for page in pages if isinstance(page, dict)]


def response_annotations(annotations: Any, before: int = 0) -> list[Json]:
    """Chat's citations as annotations of the Responses API, without fields that the API would refuse in the next turn's
    input. `before`: characters of the answer before the part that these annotations belong to.
    """
    return [_response_annotation(page, before) for page in pages_of(annotations)]


def _response_annotation(page: Json, before: int) -> Json:
    begins, ends = (max(0, _position(page.get(name)) - before) for name in ("start_index", "end_index"))
    title, url = page.get("title") or "", page.get("url") or ""
    if not url:
        return {"type": "file_citation", "file_id": page.get("file_id") or "", "filename": title, "index": ends}
    return {"type": "url_citation", "start_index": begins, "end_index": ends, "title": title, "url": url}


def _position(value: Any) -> int:
    return value if isinstance(value, int) else 0


def citations_of(annotations: Any) -> list[Json]:
    """Chat's citations of pages as Anthropic's, marked as not made by Anthropic."""
    return [
        {"type": "web_search_result_location", "cited_text": page.get("content") or "", "encrypted_index": MARK,
         "title": page.get("title"), "url": page["url"]}
        for page in pages_of(annotations) if page.get("url")
    ]  # fmt: skip


def anthropics_own(citations: Any) -> Any:
    """The citations without those that Anthropic didn't make, which it would refuse."""
    if not isinstance(citations, list):
        return citations
    return [one for one in citations if not (isinstance(one, dict) and is_carrier(one.get("encrypted_index")))]
