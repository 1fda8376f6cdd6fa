"""Models on a model hub: a small server on this machine plays it, and huggingface_hub itself talks to it."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

from tagrank import Annotator, TagRanker
from tagrank.data.vocabulary import Vocabulary
from tagrank.errors import InputError
from tagrank.features.backbones import load_backbone
from tagrank.features.seen import read_seen, write_seen
from tagrank.model_hub import Source, split_name

pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")

ROOT = Path(__file__).parents[1]
TAGS = ("dog", "ball", "<grass>")
TOKEN = "hf_of_the_tests"


class Repositories:
    """What the server has.

    Attributes:
        commits: the files of each commit of each repository, by repository and hash.
        heads: the commit of each branch, by repository and branch.
        fetched: the names of the files that were sent.
        gated: the repositories that one has to ask for.
        writers: whether whoever comes without :data:`TOKEN` may write.
    """

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.heads: dict[str, dict[str, str]] = {}
        self.fetched: list[str] = []
        self.gated: set[str] = set()

    def commit(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        commits, heads = self.commits.setdefault(repo, {}), self.heads.setdefault(repo, {})
        before = commits.get(heads.get(branch, ""), {})
        oid = hashlib.sha1(f"{repo} {branch} {len(commits)}".encode()).hexdigest()
        commits[oid] = before | files
        heads[branch] = oid
        return oid

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        return self.commits[repo][self.heads[repo][branch]]


class Handler(BaseHTTPRequestHandler):
    """The part of the hub's interface that a download and an upload need."""

    here: Repositories

    def log_message(self, *args: Any) -> None: ...

    def answer(self, status: int, content: Any = None, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def found(self, repo: str, revision: str) -> str | None:
        """The commit of a revision; None if an error was answered."""
        if repo in self.here.gated:
            self.answer(403, {}, X_Error_Code="GatedRepo", X_Error_Message="ask")
        elif repo not in self.here.commits:
            self.answer(404, {}, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        elif revision not in self.here.commits[repo] and revision not in self.here.heads[repo]:
            self.answer(404, {}, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
        else:
            return self.here.heads[repo].get(revision, revision)
        return None

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if about := re.fullmatch("/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
            repo, what, revision = about.groups()
            if (commit := self.found(repo, revision)) is None:
                return
            files = self.here.commits[repo][commit]
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            self.answer(200, tree if what == "tree" else {"id": repo, "sha": commit, "siblings": []})
        elif file := re.fullmatch("/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo, revision, name = file.groups()
            if (commit := self.found(repo, revision)) is None:
                return
            content = self.here.commits[repo][commit].get(name)
            if content is None:
                self.answer(404, {}, X_Error_Code="EntryNotFound", X_Error_Message="no such file")
                return
            if self.command == "GET":
                self.here.fetched.append(name)
            self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=commit)
        else:
            self.answer(404, {"error": f"the tests have no {path}"})

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            given = json.loads(body)
            repo = f"{given['organization']}/{given['name']}"
            status = 409 if repo in self.here.commits else 200
            if status == 200:
                self.here.commit(repo, {".gitattributes": b""})
            self.answer(status, {"url": f"http://{self.headers['Host']}/{repo}"})
        elif branch := re.fullmatch("/api/models/([^/]+/[^/]+)/branch/([^/]+)", self.path):
            self.here.heads[branch[1]].setdefault(branch[2], self.here.heads[branch[1]]["main"])
            self.answer(200, {})
        elif re.fullmatch("/api/models/.+/preupload/.+", self.path):
            files = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self.answer(200, {"files": modes})
        elif commit := re.fullmatch("/api/models/([^/]+/[^/]+)/commit/([^/?]+).*", self.path):
            sent = [json.loads(line)["value"] for line in body.splitlines() if b'"file"' in line]
            files = {file["path"]: base64.b64decode(file["content"]) for file in sent}
            oid = self.here.commit(commit[1], files, commit[2])
            url = f"http://{self.headers['Host']}/{commit[1]}/commit/{oid}"
            self.answer(200, {"success": True, "commitOid": oid, "commitUrl": url})
        else:
            self.answer(200, {})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repositories]:
    """An empty hub, which this process and those that it starts take for the only one, and an empty cache."""
    from huggingface_hub import constants

    here = Repositories()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Handler,), {"here": here}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield here
    server.shutdown()
    server.server_close()


@pytest.fixture
def annotator() -> Annotator:
    torch.manual_seed(0)
    backbone = load_backbone("small_cnn")
    ranker = TagRanker(backbone.feature_size, len(TAGS), max_length=3, embedding_size=8, hidden_size=8)
    return Annotator(ranker, Vocabulary(TAGS), backbone.spec, backbone=backbone)


@pytest.fixture
def files(annotator: Annotator, tmp_path: Path) -> dict[str, bytes]:
    """The model as somebody published it, with files that tagrank must not touch."""
    annotator.save_pretrained(tmp_path / "published")
    content = {path.name: path.read_bytes() for path in (tmp_path / "published").iterdir()}
    return content | {"pytorch_model.bin": b"\x80\x04cos\nsystem\n", "evil.py": b"raise SystemExit"}


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_without_the_package_nothing_is_written(
    annotator: Annotator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="need the package huggingface_hub"):
        annotator.save_pretrained(tmp_path / "published")
    assert not (tmp_path / "published").exists()


def test_what_was_published_is_read(
    hub: Repositories, annotator: Annotator, files: dict[str, bytes], photograph: Path
) -> None:
    commit = hub.commit("us/photos", files)
    read = Annotator.from_pretrained("us/photos")
    assert read.annotate(photograph) == annotator.annotate(photograph)
    assert read.source is not None
    assert (read.source.name, read.source.revision) == (f"hf:us/photos@{commit}", commit)
    assert f"source: hf:us/photos@{commit}" in repr(read)
    assert {"pytorch_model.bin", "evil.py"}.isdisjoint(hub.fetched)
    assert {path.name for path in read.source.folder.iterdir()} == files.keys() - {"pytorch_model.bin", "evil.py"}


def test_a_revision_is_a_branch_or_a_commit(hub: Repositories, annotator: Annotator, files: dict[str, bytes]) -> None:
    first = hub.commit("us/photos", files)
    other = hub.commit("us/photos", files, "other")
    hub.commit("us/photos", {"config.json": b"{}"})  # main is no model any more
    for name, revision, commit in (
        (f"us/photos@{first}", None, first),
        ("us/photos", first, first),
        ("hf:us/photos@other", None, other),
        ("us/photos", "other", other),
    ):
        source = Annotator.from_pretrained(name, revision).source
        assert source is not None
        assert source.revision == commit
    with pytest.raises(InputError, match="hf:us/photos: is not a model of tagrank"):
        Annotator.from_pretrained("us/photos")
    with pytest.raises(InputError, match="hf:us/photos@v9: no such revision"):
        Annotator.from_pretrained("us/photos@v9")
    with pytest.raises(InputError, match="the name has other, got main too"):
        Annotator.from_pretrained("us/photos@other", "main")


def test_the_model_of_another_library_is_not_downloaded(hub: Repositories) -> None:
    hub.commit("us/text", {"config.json": b'{"model_type": "gpt2"}', "model.safetensors": bytes(10**6)})
    with pytest.raises(InputError, match=r"hf:us/text: is not a model of tagrank: expected a ranker in config.json"):
        Annotator.from_pretrained("us/text")
    assert hub.fetched == ["config.json"]


def test_damaged_weights_are_found(hub: Repositories, files: dict[str, bytes]) -> None:
    weights = bytearray(files["model.safetensors"])
    weights[-3] ^= 1
    hub.commit("us/photos", files | {"model.safetensors": bytes(weights)})
    with pytest.raises(InputError, match="damaged, or of another model"):
        Annotator.from_pretrained("us/photos")


def test_a_model_that_is_not_there_or_not_for_everybody(hub: Repositories, files: dict[str, bytes]) -> None:
    with pytest.raises(InputError, match=r"hf:us/nothing: no such model on http.*, or no permission: `hf auth login`"):
        Annotator.from_pretrained("us/nothing")
    hub.commit("us/gated", files)
    hub.gated.add("us/gated")
    with pytest.raises(InputError, match="hf:us/gated: its owner must give you access first"):
        Annotator.from_pretrained("us/gated")


@pytest.mark.parametrize("name", ["photos", "us/photos/more", "hf:photos", "us/photos@", "us/pho tos", ""])
def test_names_that_are_none(hub: Repositories, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="expected the folder of a trained model"):
        Annotator.from_pretrained(name or "hf:")


def test_a_folder_comes_first(hub: Repositories, files: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "published"
    read = Annotator.from_pretrained(str(folder))
    assert read.source == Source(str(folder), folder)
    with pytest.raises(InputError, match="is a folder, which has no revisions; got 'main'"):
        Annotator.from_pretrained(folder, "main")
    with pytest.raises(InputError, match="it is not a folder"):
        Annotator.from_pretrained(tmp_path / "nothing")
    assert hub.fetched == []


def test_without_network_the_copy_is_read(
    hub: Repositories, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = hub.commit("us/photos", files)
    Annotator.from_pretrained("us/photos")
    # As a machine without network has it: this name is no host's.
    monkeypatch.setattr(constants, "ENDPOINT", "http://nobody.invalid")
    started = time.monotonic()
    for name in ("us/photos", f"us/photos@{commit}"):
        source = Annotator.from_pretrained(name).source
        assert source is not None
        assert source.revision == commit
    assert Annotator.from_pretrained("us/photos", local_files_only=True).source == source
    assert time.monotonic() - started < 15, "the library's own retries take half a minute for each"
    explained = (
        r"cannot be reached \(.+\), and .*cache.hub has no complete copy. On a machine that reaches it, run "
        r"`hf download us/"
    )
    for offline in (True, False):
        with pytest.raises(InputError, match=explained):
            Annotator.from_pretrained("us/others", local_files_only=offline)


def test_an_incomplete_copy_is_none(hub: Repositories, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.commit("us/photos", files)
    source = Annotator.from_pretrained("us/photos").source
    assert source is not None
    (source.folder / "model.safetensors").unlink()
    # The second is what is found with huggingface_hub before 2.
    with pytest.raises(InputError, match=r"has no complete copy|model\.safetensors is missing"):
        Annotator.from_pretrained("us/photos", local_files_only=True)
    assert Annotator.from_pretrained("us/photos").source == source


def test_push_and_read_again(hub: Repositories, annotator: Annotator, photograph: Path, tmp_path: Path) -> None:
    annotator.save(tmp_path / "model")
    write_seen(tmp_path / "model", np.arange(7, dtype=np.uint64))
    trained = Annotator.load(tmp_path / "model")
    pushed = trained.push_to_hub("us/new", license="apache-2.0", data="Our holidays.", token=TOKEN)
    assert pushed == f"hf:us/new@{hub.heads['us/new']['main']}"
    card = hub.files("us/new")["README.md"].decode()
    assert "license: apache-2.0" in card
    assert "tagrank annotate hf:us/new photo.jpg" in card
    assert "Trained and validated on 7 images" in card
    read = Annotator.from_pretrained(pushed)
    assert read.annotate(photograph) == annotator.annotate(photograph)
    assert read.source is not None
    assert read_seen(read.source.folder).tolist() == list(range(7))
    branch = read.push_to_hub("us/new", revision="tried", token=TOKEN)
    assert branch == f"hf:us/new@{hub.heads['us/new']['tried']}"


def test_push_leaves_a_card_that_somebody_wrote(hub: Repositories, annotator: Annotator) -> None:
    annotator.push_to_hub("us/new", token=TOKEN)
    assert b"Written by tagrank" in hub.files("us/new")["README.md"]
    hub.commit("us/new", {"README.md": b"# Mine"})
    annotator.push_to_hub("us/new", license="mit", token=TOKEN)
    assert hub.files("us/new")["README.md"] == b"# Mine"


def test_push_without_permission(hub: Repositories, annotator: Annotator) -> None:
    with pytest.raises(InputError, match=r"hf:us/new: .*401"):
        annotator.push_to_hub("us/new", token="hf_of_somebody")
    assert hub.commits == {}


@pytest.mark.exhaustive
def test_the_command_line_takes_a_model_of_the_hub(
    hub: Repositories, files: dict[str, bytes], photograph: Path
) -> None:
    """In a process of its own, which has the hub from HF_ENDPOINT, and the second time no network."""
    commit = hub.commit("us/photos", files)

    def annotate(model: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tagrank", "annotate", model, str(photograph), "--format", "jsonl"]
        return subprocess.run(command, env=os.environ | environment, cwd=ROOT, capture_output=True, text=True)

    done = annotate("hf:us/photos")
    assert (done.returncode, done.stderr) == (0, f"tagrank: hf:us/photos@{commit}\n"), done.stderr
    expected = [tag.tag for tag in Annotator.from_pretrained("us/photos").annotate(photograph)]
    assert [tag["tag"] for tag in json.loads(done.stdout)["tags"]] == expected
    assert annotate(f"hf:us/photos@{commit}", HF_HUB_OFFLINE="1").stdout == done.stdout
    missing = annotate("hf:us/others", HF_HUB_OFFLINE="1")
    assert missing.returncode == 2
    assert missing.stderr.startswith("tagrank: hf:us/others: http://127.0.0.1")
    assert missing.stderr.count("\n") == 1


def test_publish_on_the_command_line(hub: Repositories, files: dict[str, bytes], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from tagrank.cli import app

    def publish(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["publish", str(tmp_path / "published"), *arguments], env={"HF_TOKEN": TOKEN})

    shown = publish("us/photos", "--out", str(tmp_path / "shown"), "--license", "mit")
    assert (shown.exit_code, shown.stdout) == (0, f"{tmp_path / 'shown'}\n"), shown.output
    assert "hf:us/photos" in (tmp_path / "shown" / "README.md").read_text()
    assert hub.commits == {}
    done = publish("us/photos", "--data", "Holidays.")
    assert (done.exit_code, done.stdout) == (0, f"hf:us/photos@{hub.heads['us/photos']['main']}\n"), done.output
    assert hub.files("us/photos")["model.safetensors"] == files["model.safetensors"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"another model")
    refused = publish("us/photos", "--out", str(other))
    assert (refused.exit_code, (other / "model.safetensors").read_bytes()) == (2, b"another model")
    assert f"--out: expected a folder that is empty or not there, got {other}" in refused.stderr
    wrong = publish("photos")
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert "photos: expected" in wrong.stderr


def test_every_command_takes_a_model_of_the_hub(
    hub: Repositories, files: dict[str, bytes], photograph: Path, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from tagrank.cli import app

    commit = hub.commit("us/photos", files)
    manifest, model, line = tmp_path / "m.jsonl", "hf:us/photos", f"tagrank: hf:us/photos@{commit}"
    manifest.write_text(f'{{"image": "{photograph.name}", "tags": ["dog", "ball"]}}\n')
    for arguments in (
        ["evaluate", model, manifest, "--json", tmp_path / "scores.json"],
        ["evaluate", tmp_path / "published", manifest, "--against", f"{model}@{commit}"],
        ["report", model, manifest, "--out", tmp_path / "report.html"],
        ["index", model, photograph, "--out", tmp_path / "index"],
        ["search", tmp_path / "index", "--like", photograph, "--model", model],
    ):
        done = CliRunner().invoke(app, list(map(str, arguments)))
        assert done.exit_code == 0, done.output
        assert line in done.stderr.splitlines()
    assert json.loads((tmp_path / "scores.json").read_text())["model"]["name"] == f"hf:us/photos@{commit}"


def test_names() -> None:
    assert split_name("hf:us/a-b.c_1@v1.0") == ("us/a-b.c_1", "v1.0")
    assert split_name("us/a", "refs/pr/1") == ("us/a", "refs/pr/1")
