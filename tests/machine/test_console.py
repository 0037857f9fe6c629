"""What a terminal shows: names of files as they are, times at any width."""

import io
import re

import pytest
from rich.table import Table
from rich.text import Text

from sslkit.errors import in_one_line
from sslkit.machine.console import PlainConsole
from sslkit.machine.progress import progress_bar


def shown(thing, width=80):
    console = PlainConsole(file=io.StringIO(), width=width, force_terminal=True, _environ={"TERM": "xterm"})
    console.print(thing)
    return console.file.getvalue()


@pytest.mark.parametrize("name", ["\x1b[2J\x1b]0;title\x07.png", "a\x08b", "a\rb", "a\x9bb", "a\u202eb"])
def test_control_characters_of_names_are_only_shown(name):
    table = Table(box=None)
    table.add_column()
    table.add_row(Text(name))
    for thing in (name, Text(name), table):
        out = shown(thing)
        assert not set("\x07\x08\r\x9b\u202e") & set(out)
        assert "\x1b[2J" not in out


def test_names_are_no_markup_and_no_emoji():
    assert shown("[red]:cat:[/red]").strip() == "[red]:cat:[/red]"


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_the_progress_line_keeps_its_times(width):
    console = PlainConsole(file=io.StringIO(), width=width, force_terminal=True, _environ={"TERM": "xterm"})
    with progress_bar(console, keep=True) as update:
        update(30, 60, "epoch 12.0  loss 5.123  12345 images/s  waiting for data 12 %")
    lines = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", console.file.getvalue()).splitlines()
    last = next(line for line in reversed(lines) if "50 %" in line)
    assert len(last) <= width
    assert " 50 %" in last
    assert "0:00:00" in last
    assert "left" in last
    assert last.count(":") >= 4


def test_reasons_hold_no_addresses():
    error = OSError("cannot identify image file <_io.BytesIO object at 0x7f12ab>")
    assert in_one_line(error) == "cannot identify image file"
