"""What a folder holds: images, and everything that is left out, with the reason."""

import os
import socket

import pytest
from PIL import Image

from sslkit.data import Folder, pack
from sslkit.data.sources import listing
from sslkit.data.sources.folder import FileImages
from sslkit.data.sources.listing import list_images


def save(path, colour=(200, 30, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 40), colour).save(path)


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """Two images among everything that is called an image and is no file."""
    root = tmp_path / "photos"
    for name in ("a.png", "b.png"):
        save(root / name)
    os.mkfifo(root / "pipe.png")
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket.png")
    (root / "gone.png").symlink_to("/nonexistent/x.png")
    (root / "loop.png").symlink_to("loop.png")
    (root / "device.png").symlink_to("/dev/zero")
    (root / "linked.png").symlink_to("a.png")
    return root


def test_only_regular_files_are_images_and_the_others_are_named_and_never_opened(odd, tmp_path):
    found = list_images(odd)
    assert found.names == ["a.png", "b.png", "linked.png"]
    assert found.skipped == [
        ("device.png", "device"),
        ("gone.png", "link to nothing"),
        ("loop.png", "link to nothing"),
        ("pipe.png", "pipe"),
        ("socket.png", "socket"),
    ]
    images = Folder(Folder.Config(root=odd)).images("pretrain")
    assert list(images.skipped) == found.skipped
    assert len(pack(images, tmp_path / "a.beton", size=32)) == 3


def test_what_is_left_out_is_said_with_counts_and_names(odd):
    for name in ("notes.txt", "more.txt", "raw.CR2", "README", ".hidden.png"):
        (odd / name).touch()
    (line,) = [line for line in Folder(Folder.Config(root=odd)).found() if line.startswith("left out")]
    for part in ("2 × link to nothing (gone.png, loop.png)", "1 × pipe (pipe.png)", "2 × .txt", "1 × .cr2",
                 "1 × no extension", "1 × hidden"):  # fmt: skip
        assert part in line


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", "lost+found", "$RECYCLE.BIN", ".thumbnails", ".git"])
def test_folders_of_tools_are_no_classes_at_any_depth(tmp_path, name):
    for file in ("a/1.png", "b/2.png", f"{name}/x/3.png", f"a/{name}/1.png/4.png"):
        save(tmp_path / file)
    images = Folder(Folder.Config(root=tmp_path)).images("pretrain")
    assert images.classes == ("a", "b")
    assert len(images) == 2
    assert "2 × " in list_images(tmp_path).left_out


def test_pictures_of_runs_are_no_images(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "runs" / "byol" / "figures" / "projection.png")
    for name in ("config.yaml", "environment.json"):
        (tmp_path / "runs" / "byol" / name).touch()
    assert list_images(tmp_path).names == ["a.png"]
    assert "1 × runs of sslkit" in list_images(tmp_path).left_out


def test_a_folder_that_may_not_be_entered_is_named(tmp_path, monkeypatch):
    for name in ("a/1.png", "b/2.png", "c/3.png"):
        save(tmp_path / name)

    def scandir(path, scan=os.scandir):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert list_images(tmp_path).skipped == [(f"{tmp_path}/b", "folder not readable: permission denied")]
    assert f"permission denied ({tmp_path}/b)" in Folder(Folder.Config(root=tmp_path)).found()[1]


def test_a_class_without_images_is_named(tmp_path):
    for name in ("a/1.png", "b/deep/2.png"):
        save(tmp_path / name)
    (tmp_path / "c" / "deeper").mkdir(parents=True)
    (tmp_path / "b" / "empty").mkdir()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "notes.txt").touch()
    found = list_images(tmp_path)
    assert found.skipped == [(name, "folder without images") for name in ("b/empty/", "c/", "d/")]
    assert "3 × folder without images (b/empty/, c/, d/)" in found.left_out


def test_a_link_to_a_folder_takes_no_images_from_it(tmp_path):
    save(tmp_path / "b" / "1.png")
    save(tmp_path / "c" / "2.png")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    assert list_images(tmp_path).names == ["b/1.png", "c/2.png"]
    assert list_images(tmp_path).left_out == "1 × links to a folder that is read already"


def test_names_that_are_not_utf8_are_packed_and_shown_as_text(tmp_path):
    save(tmp_path / "a.png")
    os.rename(os.fsencode(tmp_path / "a.png"), os.fsencode(tmp_path) + b"/caf\xe9\x1b.png")
    store = pack(FileImages(tmp_path), tmp_path / "a.beton", size=32)
    assert store.names == [r"caf\xe9\x1b.png"]


def test_a_folder_is_listed_once_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "SETTLED", 0.0)
    for name in ("a/1.png", "b/2.png"):
        save(tmp_path / name)
    scanned = []
    monkeypatch.setattr(os, "scandir", lambda path, scan=os.scandir: scanned.append(path) or scan(path))
    os.utime(tmp_path / "a", (1, 1))
    first = list_images(tmp_path)
    assert list_images(tmp_path) is first
    assert len(scanned) == 3
    save(tmp_path / "b" / "3.png")
    assert len(list_images(tmp_path).names) == 3


@pytest.mark.parametrize("ending", ["jfif", "mpo", "tga", "avif", "dib", "jp2", "heic"])
def test_every_kind_of_picture_is_read(tmp_path, ending):
    if ending == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    picture = Image.new("RGB", (64, 64), (200, 30, 30))
    picture.save(tmp_path / f"a.{ending}", {"jfif": "JPEG", "jp2": "JPEG2000", "heic": "HEIF"}.get(ending))
    store = pack(FileImages(tmp_path), tmp_path / "a.beton", size=32)
    assert abs(store.read([0]).astype(int) - (200, 30, 30)).max() < 12


def test_heic_without_its_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    save(tmp_path / "a.png")
    (tmp_path / "b.heic").write_bytes(b"ftypheic")
    images = FileImages(tmp_path)
    without = images.fingerprint()
    store = pack(images, tmp_path / "a.beton", size=32, max_skipped=0.5)
    assert store.skipped == [("b.heic", 'OSError: .heic needs pillow-heif: pip install "sslkit[heic]"')]
    monkeypatch.undo()
    pytest.importorskip("pillow_heif")
    assert FileImages(tmp_path).fingerprint() != without
