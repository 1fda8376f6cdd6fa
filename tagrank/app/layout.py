"""The page: its parts, how they are arranged, and what happens when a user does something. On Gradio."""

import base64
from collections.abc import Sequence
from typing import Any

import gradio as gr

from tagrank.app import parts
from tagrank.app.downloads import Which, as_csv, as_xmp
from tagrank.app.finding import Finder, Found
from tagrank.app.service import Service
from tagrank.app.session import Session
from tagrank.app.uploads import Uploads, clean_name, too_large
from tagrank.errors import InputError

MOST_PHOTOGRAPHS = 100
"""So many photographs a user may have on the page."""
SESSIONS = 1000
"""So many users are remembered; the one who was away longest is forgotten first."""

Updates = dict[Any, Any]


def make_page(service: Service, uploads: Uploads, finder: Finder | None = None) -> gr.Blocks:
    """The page of a model.

    Args:
        service: computes.
        uploads: has the files that users sent.
        finder: searches an index; None if there is none.
    """
    return _Page(service, uploads, finder).blocks


class _Page:
    def __init__(self, service: Service, uploads: Uploads, finder: Finder | None) -> None:
        self._service, self._uploads, self._finder = service, uploads, finder
        self.blocks: gr.Blocks
        # No telemetry, and no question to a server whether there is a later version.
        with gr.Blocks(title="tagrank", analytics_enabled=False, fill_width=True) as self.blocks:
            self._session = gr.State(Session(), delete_callback=self._forget)
            _part(parts.head(self._about()), "head")
            self._notices = _part("", "notices")
            if finder is None:
                self._arrange_tagging()
            else:
                with gr.Tabs(elem_id="tabs") as self._tabs:
                    with gr.Tab("Tag", id="tag"):
                        self._arrange_tagging()
                    with gr.Tab("Search", id="search"):
                        self._arrange_search(finder)
            self._saver = _part(None, "saver", "save.js", html_template="")
            self._listen()
        self.blocks.state_session_capacity = SESSIONS

    def _about(self) -> str:
        annotator = self._service.annotator
        about = f"{len(self._service.tags)} tags, lists of up to {annotator.ranker.steps - 1}"
        return about if self._finder is None else f"{about}; {len(self._finder)} photographs to search"

    def _arrange_tagging(self) -> None:
        with gr.Row(elem_id="table"):
            with gr.Column(scale=3, min_width=300, elem_id="left"):
                self._stage = _part("", "stage")
                self._strip = _part("", "strip")
                most = self._uploads.most_bytes
                first = parts.dropzone(Session(), most)
                self._dropzone = _part(first, "dropzone", "dropzone.js", most_bytes=most, too_large=too_large(most))
            with gr.Column(scale=2, min_width=300, elem_id="right", visible=False) as self._right:
                self._tags = _part("", "tags")
                choices = sorted(self._service.tags, key=str.casefold)
                self._other = gr.Dropdown(choices, value=None, label="Another tag", elem_id="other")
                self._positions = _part("", "positions")
                self._downloads = _part("", "downloads")

    def _arrange_search(self, finder: Finder) -> None:
        choices = sorted(finder.tags, key=str.casefold)
        with gr.Row(elem_id="query"):
            self._query = gr.Dropdown(
                choices,
                value=[],
                multiselect=True,
                max_choices=finder.positions,
                label="Tags, the most important first",
                scale=4,
                min_width=240,
            )
            self._unordered = gr.Checkbox(False, label="in any order", scale=1, min_width=140)
        self._results = _part("", "results")

    def _listen(self) -> None:
        """Say what happens when. Everything may change everything: a handler returns what it did change."""
        shown = [self._notices, self._stage, self._strip, self._dropzone, self._right]
        shown += [self._tags, self._other, self._positions, self._downloads, self._saver]
        buttons = [self._notices, self._stage, self._strip, self._tags, self._downloads]
        if self._finder is not None:
            shown += [self._tabs, self._query, self._results]
            buttons += [self._results]
        options: dict[str, Any] = {
            "outputs": [self._session, *shown],
            "show_progress": "hidden",
            "concurrency_limit": None,
            "trigger_mode": "multiple",
            "api_visibility": "private",
        }
        self._dropzone.upload(self._receive, [self._session], **options)
        for part in buttons:
            part.click(self._click, [self._session], **options)
        self._other.input(self._accept_other, [self._session, self._other], **options)
        if self._finder is not None:
            gr.on(
                [self._query.input, self._unordered.input],
                self._search,
                [self._session, self._query, self._unordered],
                **options,
            )

    def _receive(self, session: Session, event: gr.EventData) -> Updates:
        """A file came, or was refused by the browser or the server."""
        sent = _fields(event)
        name, chosen = clean_name(sent.get("name", "")), session.chosen
        notices = [] if sent.get("first") else list(session.notices)
        try:
            if "ticket" not in sent:
                raise InputError(f"{name}: {sent.get('why', 'did not arrive')}")
            key = self._add(session, *self._uploads.take(sent["ticket"]))
            if sent.get("first"):
                session.choose(key)
        except InputError as error:
            notices.append(str(error))
        session.received += 1
        session.notices = notices
        updates = self._all(session) if session.chosen != chosen else self._besides(session)
        return updates | {self._dropzone: parts.dropzone(session, self._uploads.most_bytes)}

    def _add(self, session: Session, name: str, content: bytes) -> str:
        if len(session) >= MOST_PHOTOGRAPHS:
            raise InputError(
                f"{clean_name(name)}: expected at most {MOST_PHOTOGRAPHS} photographs on the page; remove some"
            )
        return session.add(self._service.read(name, content))

    def _click(self, session: Session, event: gr.EventData) -> Updates:
        """A button was pressed: its ``data-do`` says which."""
        data = _fields(event)
        do, key = data.get("do", ""), data.get("key", "")
        session.notices = []
        if session.untouched and do != "dismiss":
            session.notices = ["This page was left too long, and its photographs are gone. Drop them again."]
            return self._all(session)
        if "key" in data and key not in session:  # a second click on a button that removes
            return self._all(session)
        try:
            match do:
                case "accept":
                    self._service.accept(session[key], data.get("tag", ""))
                case "take_back":
                    self._service.take_back(session[key], data.get("tag", ""))
                case "clear":
                    self._service.clear(session[key])
                case "choose":
                    session.choose(key)
                    return self._all(session)
                case "remove":
                    session.remove(key)
                    return self._all(session) | {self._dropzone: parts.dropzone(session, self._uploads.most_bytes)}
                case "csv" | "xmp":
                    return self._besides(session) | {self._saver: self._download(session, do, Which(data["which"]))}
                case "like" | "by_accepted" | "open":
                    return self._of_index(session, do, data)
        except InputError as error:
            session.notices = [str(error)]
        return self._besides(session)

    def _accept_other(self, session: Session, tag: str | None) -> Updates:
        """A tag was chosen among all."""
        if session.chosen is None or not tag:
            return self._besides(session)
        updates = self._click(session, gr.EventData(None, {"do": "accept", "key": session.chosen, "tag": tag}))
        return updates | {self._other: gr.update(value=None)}

    def _search(self, session: Session, query: list[str], unordered: bool) -> Updates:
        """A query was changed."""
        assert self._finder is not None
        session.notices = []
        try:
            found = self._finder.by_tags(query, not unordered) if query else []
            return self._found(session, query, found, ordered=not unordered)
        except InputError as error:
            session.notices = [str(error)]
        return self._besides(session)

    def _of_index(self, session: Session, do: str, data: dict[str, str]) -> Updates:
        """Search for what is like the photograph or its list, or take a photograph that was found."""
        assert self._finder is not None
        if do == "open":
            ranks = {str(rank): name for rank, name in enumerate(session.found, 1)}
            if data.get("rank") not in ranks:
                raise InputError("this photograph is not among those that were found; search again")
            name = ranks[data["rank"]]
            session.choose(self._add(session, name, self._finder.content(name)))
            return self._all(session) | {
                self._dropzone: parts.dropzone(session, self._uploads.most_bytes),
                self._tabs: gr.Tabs(selected="tag"),
            }
        photograph = session.photograph
        if photograph is None:
            return self._all(session)
        if do == "like":
            query, found = [], self._finder.like(photograph.features)
        else:
            query = photograph.accepted[: self._finder.positions]
            if not query:
                raise InputError("accept the tags that are to be searched for first")
            found = self._finder.by_tags(query)
        updates = self._found(session, query, found)
        return updates | {self._query: gr.update(value=query), self._tabs: gr.Tabs(selected="search")}

    def _found(self, session: Session, query: Sequence[str], found: list[Found], ordered: bool = True) -> Updates:
        session.found = [match.name for match in found]
        photograph = session.photograph
        title, hint = ", ".join(query), "How likely a person's list begins with these tags"
        if not query and photograph is not None:
            title, hint = f"Like {photograph.name}", "How alike the lists are expected to be"
        elif len(query) > 1:
            hint += ", in this order" if ordered else ", in any order"
        return self._besides(session) | {self._results: parts.found(title, f"{hint}.", found)}

    def _download(self, session: Session, format: str, which: Which) -> dict[str, Any]:
        photographs = [photograph for _, photograph in session]
        make = (
            (lambda: as_csv(photographs, which))
            if format == "csv"
            else (lambda: as_xmp(photographs, which, self._service.digest))
        )
        file = self._service.run(make)
        # The count makes two downloads of the same content differ.
        session.downloads += 1
        content = base64.b64encode(file.content).decode("ascii")
        return {"name": file.name, "type": file.type, "content": content, "count": session.downloads}

    def _forget(self, session: Session) -> None:
        """Forget a user: an hour after the page was closed Gradio deletes its state, but keeps what was shown of it."""
        sessions = self.blocks.state_holder.session_data
        for name, other in list(sessions.items()):
            if any(value is session for value in other.state_data.values()):
                sessions.pop(name, None)

    def _all(self, session: Session) -> Updates:
        """Everything, with the photograph that is shown large."""
        return self._besides(session) | {
            self._stage: parts.stage(session),
            self._right: gr.update(visible=len(session) > 0),
        }

    def _besides(self, session: Session) -> Updates:
        """Everything besides pictures that are there already and need not be sent again."""
        before, session.strip = session.strip, parts.strip(session)
        changed: Updates = {} if session.strip == before else {self._strip: session.strip}
        return changed | {
            self._session: session,
            self._notices: parts.notices(session.notices),
            self._tags: parts.tags(session),
            self._positions: parts.positions(session),
            self._downloads: parts.downloads(session, self._finder is not None, self._service.can_write_xmp),
        }


def _part(value: Any, name: str, script: str = "clicks.js", **options: Any) -> gr.HTML:
    """A component whose HTML Python writes."""
    return gr.HTML(
        value, js_on_load=parts.resource(script), padding=False, apply_default_css=False, elem_id=name, **options
    )


def _fields(event: gr.EventData) -> dict[str, str]:
    """What a script says of an event."""
    return {str(name): str(value) for name, value in dict(event._data or {}).items()}
