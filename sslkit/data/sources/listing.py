"""List the image files below a folder, once, with everything that is left out and the reason."""

import errno
import os
import stat
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from sslkit.data.pictures import EXTENSIONS, printable
from sslkit.data.sources.layout import Layout, read_layout

TOOL_FOLDERS = frozenset(
    {
        "@eadir",
        "@tmp",
        "#recycle",
        "#snapshot",
        "__macosx",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "__pycache__",
    }
)
"""Folders that NAS devices, archives and file systems leave behind, in lower case: no classes, and no images of yours.
Hidden ones, such as .thumbnails, are left out as all hidden files are."""
RUN_FILES = {"config.yaml", "environment.json"}
"""Files that mark a folder as a run of sslkit, whose pictures are results."""
SETTLED = 0.1
"""Seconds after its last change from which on a folder's times tell of every further change."""
KEPT_LISTINGS = 8

Skipped = tuple[str, str]
"""(name, reason)."""


@dataclass(frozen=True)
class Listing:
    """What a folder holds at any depth."""

    root: Path
    names: list[str] = field(default_factory=list)
    """Image files, relative, with slashes; sorted like paths, by component."""
    skipped: list[Skipped] = field(default_factory=list)
    """What looks like an image or a folder of images, but cannot be used, with the reason."""
    others: Counter[str] = field(default_factory=Counter)
    """Number of other files, by kind."""
    folders: dict[str, int] = field(default_factory=dict)
    """Folders that were read, with their time of change in nanoseconds."""

    @cached_property
    def layout(self) -> Layout:
        """Parts and classes. Raises UserError for a test class without training images."""
        return read_layout(self.names)

    @property
    def left_out(self) -> str:
        """Everything that is left out, in words; "" if nothing is."""
        kinds = [f"{count:,} × {kind}" for kind, count in self.others.most_common()]
        reasons = Counter(reason for _, reason in self.skipped)
        named = [f"{count:,} × {reason} ({_some(self.skipped, reason)})" for reason, count in reasons.most_common()]
        return ", ".join(named + kinds)


def list_images(root: Path) -> Listing:
    """Return the images below `root`; listed again only if a folder has changed since this process listed it.

    Hidden files and the folders of tools are left out. Links to folders are followed, once each. Only regular files
    are images: pipes, sockets, devices and links to nowhere are named, and never opened.
    """
    key = os.path.abspath(root)
    known = _listings.get(key)
    if known is not None and _unchanged(known):
        return known
    started = time.time_ns()
    found = _list(root)
    _listings.pop(key, None)
    if max(found.folders.values(), default=started) < started - SETTLED * 1e9:
        _listings[key] = found
    while len(_listings) > KEPT_LISTINGS:
        del _listings[next(iter(_listings))]
    return found


_listings: dict[str, Listing] = {}
"""Start-up asks several times for the same folder: to check it, to fit settings to it, and to open it."""


def _unchanged(listing: Listing) -> bool:
    try:
        return all(os.stat(folder).st_ctime_ns == changed for folder, changed in listing.folders.items())
    except OSError:
        return False


def _list(root: Path) -> Listing:
    listing = Listing(root)
    seen: set[tuple[int, int]] = set()
    # Links wait until the end: images belong to the folder that they lie in.
    todo, links = [""], [""][:0]
    while todo or links:
        below, below_links = _enter(todo.pop() if todo else links.pop(), listing, seen)
        todo += reversed(below)
        links = below_links[::-1] + links
    listing.names.sort(key=by_component)
    listing.skipped.extend((f"{printable(name)}/", "folder without images") for name in _empty(listing))
    listing.skipped.sort()
    return listing


def _empty(listing: Listing) -> list[str]:
    """Return the folders without images at any depth, such as an empty class, but not the folders in them."""
    prefix = os.path.join(listing.root, "")
    holding = {""} | {name.rpartition("/")[0] for name in listing.names}
    for folder in list(holding):
        while folder := folder.rpartition("/")[0]:
            holding.add(folder)
    entered = [os.fspath(folder).removeprefix(prefix) for folder in listing.folders][1:]
    return [name for name in entered if name not in holding and name.rpartition("/")[0] in holding]


def by_component(name: str) -> str:
    """Sort key of names with slashes, by which they sort like paths."""
    return name.replace("/", "\0")


def _enter(name: str, listing: Listing, seen: set[tuple[int, int]]) -> tuple[list[str], list[str]]:
    """Add the files of one folder to the listing; return the folders in it, and the links to folders."""
    path = os.path.join(listing.root, name) if name else os.fspath(listing.root)
    try:
        about = os.stat(path)
        if (about.st_dev, about.st_ino) in seen:
            listing.others["links to a folder that is read already"] += 1
            return [], []
        with os.scandir(path) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        listing.skipped.append((printable(path), f"folder not readable: {_why(error)}"))
        return [], []
    seen.add((about.st_dev, about.st_ino))
    if name and {entry.name for entry in inside} >= RUN_FILES:
        listing.others["runs of sslkit"] += 1
        return [], []
    listing.folders[path] = about.st_ctime_ns
    return _sort_out(f"{name}/" if name else "", inside, listing)


def _sort_out(prefix: str, entries: Iterable[os.DirEntry[str]], listing: Listing) -> tuple[list[str], list[str]]:
    folders: list[str] = []
    links: list[str] = []
    for entry in entries:
        if entry.name.startswith("."):
            listing.others["hidden"] += 1
        elif _is_folder(entry):
            if entry.name.lower() in TOOL_FOLDERS:
                listing.others[f"{printable(entry.name)} folders"] += 1
            else:
                (links if entry.is_symlink() else folders).append(prefix + entry.name)
        else:
            _add_file(prefix + entry.name, entry, listing)
    return folders, links


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _add_file(name: str, entry: os.DirEntry[str], listing: Listing) -> None:
    extension = os.path.splitext(name)[1].lower()
    problem = _not_a_file(entry) if extension in EXTENSIONS or entry.is_symlink() else None
    if problem:
        listing.skipped.append((printable(name), problem))
    elif extension in EXTENSIONS:
        listing.names.append(name)
    else:
        listing.others[printable(extension) or "no extension"] += 1


def _not_a_file(entry: os.DirEntry[str]) -> str | None:
    """Return what the entry is, if it is no regular file and no link to one."""
    try:
        if entry.is_file():
            return None
        mode = entry.stat().st_mode
    except FileNotFoundError:
        return "link to nothing"
    except OSError as error:
        return "link to nothing" if error.errno == errno.ELOOP else _why(error)
    return next((what for test, what in KINDS if test(mode)), "no regular file")


KINDS = (
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


def _why(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


def _some(skipped: list[Skipped], reason: str) -> str:
    names = [name for name, why in skipped if why == reason]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
