"""What the command line prints: on a terminal no tag or file name is obeyed, and what cannot be printed is one line."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tagrank.cli.terminal import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("dog, café, 写真", "dog, café, 写真"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("\x9b2J", r"\x9b2J"),
        ("a\rb\nc\x07", r"a\rb\nc\x07"),
        ("a\u202eb", r"a\u202eb"),
        ("a\u2028b", r"a\u2028b"),
        (os.fsdecode(b"caf\xe9"), os.fsdecode(b"caf\xe9")),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_an_error_on_a_terminal(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    name = str(tmp_path / "\x1b]0;title\x07.jsonl")
    command = [sys.executable, "-m", "tagrank", "train", name, "--out", str(tmp_path / "out")]
    assert subprocess.run(command, stdout=follower, stderr=follower, check=False).returncode == 2
    os.close(follower)
    output = os.read(leader, 65536)
    os.close(leader)
    assert rb"\x1b]0;title\x07.jsonl: no such file or directory" in output.replace(b"\r\n", b"")
    assert b"\x1b" not in output


def test_half_a_surrogate_pair_in_an_error() -> None:
    code = (
        "import tagrank.__main__, sys; sys.stderr.reconfigure(errors='tagrank'); "
        "print('\\ud800 \\udce9', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stderr == b"\\ud800 \xe9\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_help_that_cannot_be_written() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tagrank", "--help"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.stderr == b"tagrank: the output cannot be written: no space left on device\n"
    assert done.returncode == 2
