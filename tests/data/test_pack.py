"""Pictures of every kind to squares of RGB, and packing them."""

import io
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import loky
import numpy as np
import pytest
from helpers.paths import PYTHONPATH
from helpers.process_memory import private_bytes
from PIL import Image, ImageFile

from sslkit.data import ArrayImages, Folder, Images, Store, pack
from sslkit.data.packing import large
from sslkit.data.packing import pack as packing
from sslkit.data.packing.convert import to_square
from sslkit.data.packing.processes import ordered_map_by_processes
from sslkit.data.sources.folder import FileImages
from sslkit.data.threads import ordered_map
from sslkit.errors import UserError

RED, BLUE = (220, 30, 20), (10, 40, 230)


def halves(width=80, height=80, vertical=True):
    """Red above (or left), blue below (or right)."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = RED
    if vertical:
        pixels[height // 2 :] = BLUE
    else:
        pixels[:, width // 2 :] = BLUE
    return Image.fromarray(pixels)


def encoded(picture, form, **options):
    file = io.BytesIO()
    picture.save(file, form, **options)
    file.seek(0)
    return Image.open(file)


def near(colour, wanted, tolerance=12):
    return np.abs(np.asarray(colour, int) - wanted).max() <= tolerance


@pytest.mark.parametrize(
    ("form", "mode", "tolerance"),
    [
        ("PNG", "RGB", 0),
        ("PNG", "P", 30),
        ("PNG", "RGBA", 0),
        ("JPEG", "RGB", 6),
        ("JPEG", "CMYK", 12),
        ("WEBP", "RGB", 25),
        ("BMP", "RGB", 0),
        ("GIF", "P", 30),
        ("TIFF", "CMYK", 3),
        ("TIFF", "YCbCr", 6),
        ("PPM", "RGB", 0),
    ],
)
def test_every_colour_mode_comes_out_as_rgb(form, mode, tolerance):
    pixels = to_square(encoded(halves().convert(mode), form), 32)
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert near(pixels[4, 16], RED, tolerance)
    assert near(pixels[28, 16], BLUE, tolerance)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    upright = halves(80, 64)
    # What a camera held so stores: the inverse of the turn that the tag asks for.
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(inverse[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = to_square(encoded(stored, "JPEG", exif=exif, quality=95), 32)
    assert near(pixels[4, 16], RED)
    assert near(pixels[28, 16], BLUE)


def test_transparency_is_laid_on_white():
    clear = Image.new("RGBA", (40, 40), (*RED, 0))
    clear.paste((*BLUE, 255), (0, 20, 40, 40))
    for picture in (clear, encoded(clear.convert("P"), "PNG"), encoded(clear, "WEBP", lossless=True)):
        pixels = to_square(picture, 40)
        assert near(pixels[30, 20], BLUE, 30)
    assert near(to_square(clear, 40)[5, 20], (255, 255, 255), 0)
    keyed = encoded(halves(), "PNG", transparency=RED)
    assert near(to_square(keyed, 80)[10, 40], (255, 255, 255), 0)
    grey = Image.merge("LA", [Image.new("L", (8, 8), 90), Image.new("L", (8, 8), 0)])
    assert near(to_square(grey, 8)[4, 4], (255, 255, 255), 0)


def test_sixteen_bits_keep_their_grey_levels():
    ramp = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
    for form in ("PNG", "TIFF"):
        pixels = to_square(encoded(Image.fromarray(ramp), form), 64)
        np.testing.assert_array_equal(pixels[..., 0], (ramp // 257).astype(np.uint8))
        np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])


def test_one_bit_and_grey():
    checker = np.indices((16, 16)).sum(0) % 2 * 255
    picture = Image.fromarray(checker.astype(np.uint8))
    for mode in ("1", "L"):
        np.testing.assert_array_equal(to_square(picture.convert(mode), 16)[..., 1], checker)


def test_pixels_without_an_agreed_range_are_refused():
    for pixels in (np.ones((8, 8), np.float32), np.full((8, 8), 1 << 20, np.int32)):
        with pytest.raises(ValueError, match="no agreed range"):
            to_square(Image.fromarray(pixels), 8)


def test_fit_decides_what_a_long_picture_shows():
    wide = halves(160, 40, vertical=False)
    crop, pad, stretch = (to_square(wide, 40, fit) for fit in ("crop", "pad", "stretch"))
    assert near(crop[20, 2], RED)
    assert near(crop[20, 37], BLUE)
    assert near(pad[2, 20], (0, 0, 0), 0)
    assert near(pad[20, 2], RED)
    assert near(stretch[2, 2], RED)
    assert near(stretch[37, 37], BLUE)


def test_crop_keeps_the_middle():
    pixels = np.zeros((30, 90, 3), np.uint8)
    pixels[:, 30:60] = 255
    assert to_square(Image.fromarray(pixels), 30).min() == 255
    assert to_square(Image.fromarray(pixels.transpose(1, 0, 2).copy()), 30).min() == 255


def test_shrinking_averages_instead_of_picking():
    checker = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    for picture in (Image.fromarray(checker), encoded(Image.fromarray(checker), "JPEG", quality=95)):
        assert np.abs(to_square(picture, 32).astype(int) - 127).max() < 20


def test_fast_jpeg_shrinking_looks_like_slow():
    y, x = np.mgrid[:600, :800]
    waves = 127 + 100 * np.sin(x / 25)[..., None] * np.sin(y[..., None] / [20, 30, 40])
    picture = encoded(Image.fromarray(waves.astype(np.uint8)), "JPEG", quality=95)
    slow = to_square(picture.copy(), 64)
    fast = to_square(picture, 64)
    assert np.abs(fast.astype(int) - slow).mean() < 1.5


def test_an_image_of_the_right_size_is_left_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    assert to_square(pixels, 32) is pixels
    np.testing.assert_array_equal(to_square(Image.fromarray(pixels), 32), pixels)


def save(folder, name, picture, **options):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)
    return path


def messy_folder(folder, good=12):
    """Good pictures between a JPEG cut short, a text file, an empty file and a PNG with a broken stream."""
    for i in range(good):
        save(folder, f"good{i:02d}.png", halves(40 + i, 50))
    whole = save(folder, "cut.jpg", Image.effect_noise((200, 200), 90), quality=90)
    whole.write_bytes(whole.read_bytes()[:4000])
    (folder / "notes.jpg").write_text("this is no picture")
    (folder / "empty.png").touch()
    broken = save(folder, "stream.png", Image.effect_noise((60, 60), 90))
    content = bytearray(broken.read_bytes())
    content[60:400] = bytes(340)
    broken.write_bytes(content)
    return folder


def test_unreadable_images_are_named_skipped_and_counted(tmp_path):
    images = FileImages(messy_folder(tmp_path / "photos"))
    store = pack(images, tmp_path / "a.beton", size=32, max_skipped=0.3)
    assert len(store) == 12
    assert [name for name, _ in store.skipped] == ["cut.jpg", "empty.png", "notes.jpg", "stream.png"]
    assert all(reason for _, reason in store.skipped)
    assert store.names == [f"good{i:02d}.png" for i in range(12)]
    assert near(store.read([0])[0, 4, 16], RED)
    assert Store(store.path).skipped == store.skipped


def test_too_many_unreadable_images_stop_the_packing(tmp_path):
    images = FileImages(messy_folder(tmp_path / "photos"))
    with pytest.raises(UserError, match=r"(?s)2 of the first .*cut\.jpg.*empty\.png.*max_skipped") as message:
        pack(images, tmp_path / "a.beton", size=32, max_skipped=0.1)
    assert "notes.jpg" not in str(message.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos"]


def test_nothing_readable_stops_whatever_is_allowed(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.jpg").write_text("no picture")
    with pytest.raises(UserError, match="1 of the first 1 images"):
        pack(FileImages(tmp_path / "p"), tmp_path / "a.beton", size=32, max_skipped=1)
    nothing = ArrayImages(lambda: (np.empty((0, 8, 8, 3), np.uint8), None), "")
    with pytest.raises(UserError, match="no images"):
        pack(nothing, tmp_path / "a.beton", size=8)


def noise_images(count=40, side=112):
    pixels = np.random.default_rng(1).integers(0, 256, (count, side, side, 3), np.uint8)
    return ArrayImages(lambda: (pixels, None), "noise")


@pytest.mark.parametrize(("size", "mode", "lossless"), [(96, "auto", True), (112, "auto", False), (112, "raw", True)])
def test_raw_up_to_96_pixels_and_jpeg_above(tmp_path, size, mode, lossless):
    images = noise_images(side=size)
    store = pack(images, tmp_path / "a.beton", size=size, mode=mode)
    assert (store.read([7])[0] == images.load(7)).all() == lossless
    assert store.about["settings"]["mode"] == ("raw" if lossless else "jpeg")
    assert store.about["settings"]["jpeg_quality"] == 92


def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path):
    alone = pack(noise_images(), tmp_path / "alone.beton", size=100, workers=1)
    crowd = pack(noise_images(), tmp_path / "crowd.beton", size=100, workers=7)
    assert alone.path.read_bytes() == crowd.path.read_bytes()


def test_progress_counts_to_the_end(tmp_path):
    calls = []
    pack(noise_images(), tmp_path / "a.beton", size=16, progress=lambda *c: calls.append(c))
    assert calls == [(i + 1, 40) for i in range(40)]


def test_a_failed_packing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.beton"
    before = pack(noise_images(), path, size=16).path.read_bytes()

    class Stops(Images):
        def __len__(self):
            return 3

        def load(self, index):
            raise MemoryError

    with pytest.raises(MemoryError):
        pack(Stops(), path, size=16)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.beton", "a.beton.json"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_refuses_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        pack(noise_images(), tmp_path / "a.beton", size=16)


def test_a_path_below_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"a\.beton cannot be written .* SSLKIT_CACHE"):
        pack(noise_images(), tmp_path / "file" / "a.beton", size=16)


def test_memory_stays_bounded_while_packing(tmp_path):
    """No more images are begun than a few a worker, however slowly they are written."""
    begun, taken = [], []

    def slow(i):
        begun.append(i)
        return i

    for i in ordered_map(slow, range(200), workers=2, ahead=8):
        taken.append(i)
        assert len(begun) - len(taken) <= 8
    assert taken == list(range(200))


class Made(Images):
    """Images that exist while they are looked at."""

    def __init__(self, count, side):
        self.count, self.side = count, side

    def __len__(self):
        return self.count

    def load(self, index):
        return np.full((self.side, self.side, 3), index % 251, np.uint8)


@pytest.mark.parametrize("mode", ["raw", "jpeg"])
def test_packing_holds_no_pixels_but_those_at_hand(tmp_path, mode):
    """3,000 images of 83 MB: what it held more at any time is a fifth of that at most."""
    pack(Made(200, 96), tmp_path / "warm.beton", size=96, mode=mode)
    before, most = private_bytes(), 0

    def look(done, total):
        nonlocal most
        if done % 100 == 0:
            most = max(most, private_bytes() - before)

    store = pack(Made(3000, 96), tmp_path / "a.beton", size=96, mode=mode, progress=look)
    assert len(store) == 3000
    assert most < 3000 * 96 * 96 * 3 / 5


def test_ordered_map_hands_on_errors_and_stops_its_threads():
    done = []

    def fails(i):
        done.append(i)
        return 1 // (10 - i)

    with pytest.raises(ZeroDivisionError):
        list(ordered_map(fails, range(1000), workers=2, ahead=4))
    assert len(done) < 20


def test_labels_follow_their_images_when_some_are_skipped(tmp_path):
    for kind in ("cat", "dog"):
        for i in range(8):
            save(tmp_path / "p", f"{kind}/{i}.png", halves())
    (tmp_path / "p" / "cat" / "3.png").write_text("no picture")
    (tmp_path / "p" / "dog" / "0.png").write_text("no picture")
    source = Folder(Folder.Config(root=tmp_path / "p"))
    store = pack(source.images("pretrain"), tmp_path / "a.beton", size=32, max_skipped=0.2)
    assert store.classes == ("cat", "dog")
    assert store.labels.tolist() == [0] * 7 + [1] * 7
    assert [n.split("/")[0] for n in store.names] == ["cat"] * 7 + ["dog"] * 7
    about = json.loads((tmp_path / "a.beton.json").read_text())
    assert [name for name, _ in about["skipped"]] == ["cat/3.png", "dog/0.png"]


@pytest.fixture
def apart(monkeypatch):
    """Few images are enough for processes of their own, and only they can decode a file."""
    monkeypatch.setattr(packing, "APART_FROM", 1)
    monkeypatch.setattr(FileImages, "load", lambda self, index: pytest.fail("decoded in this process"))


def classes_of_pictures(folder, count=80):
    for k in range(count):
        save(folder, f"{'ab'[k % 2]}/{k:02d}.png", halves(40 + k, 50))
    (folder / "a" / "00.png").write_text("no picture")
    return FileImages(folder)


def test_processes_write_what_threads_write(tmp_path, request):
    images = classes_of_pictures(tmp_path / "p")
    for mode in ("raw", "jpeg"):
        pack(images, tmp_path / f"{mode}-threads.beton", size=32, mode=mode, workers=2)
    request.getfixturevalue("apart")
    done = []
    for mode in ("raw", "jpeg"):
        store = pack(
            images, tmp_path / f"{mode}.beton", size=32, mode=mode, workers=2, progress=lambda *c: done.append(c)
        )
        threads = Store(tmp_path / f"{mode}-threads.beton")
        assert store.path.read_bytes() == threads.path.read_bytes()
        assert (store.names, store.classes) == (threads.names, threads.classes)
        assert store.labels.tolist() == [0] * 39 + [1] * 40
        assert [name for name, _ in store.skipped] == ["a/00.png"]
        assert done.pop() == (80, 80)


def test_a_part_is_small_and_a_scripts_own_class_stays_at_home(tmp_path):
    images = classes_of_pictures(tmp_path / "p")
    images._names = [f"a/{k:090d}.png" for k in range(100_000)]
    images.labels = np.zeros(100_000, np.int64)
    part = images.part(range(500, 510))
    assert len(part) == 10
    assert part.name(3) == images.name(503)
    assert len(pickle.dumps(part)) < 4000

    class Mine(FileImages):
        pass

    assert Mine(tmp_path / "p").part(range(1)) is None
    assert noise_images().part(range(1)) is None


def test_what_comes_back_at_a_time_is_bounded(tmp_path, apart, monkeypatch):
    sent = []
    monkeypatch.setattr(
        FileImages, "part", lambda self, rows, part=FileImages.part: sent.append(rows) or part(self, rows)
    )
    images = classes_of_pictures(tmp_path / "p", 36)
    for size, most in ((32, 32), (400, 2), (800, 1)):
        sent.clear()
        pack(images, tmp_path / "a.beton", size=size, mode="jpeg", workers=2)
        assert max(len(rows) for rows in sent) == most


def test_pillow_is_set_in_the_processes_as_here(tmp_path, apart, monkeypatch):
    whole = save(tmp_path / "p", "cut.jpg", Image.effect_noise((200, 200), 90), quality=90)
    whole.write_bytes(whole.read_bytes()[:4000])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert len(pack(FileImages(tmp_path / "p"), tmp_path / "a.beton", size=32, workers=2)) == 1


UNGUARDED = """
import sys
from pathlib import Path
from sslkit.data.packing import pack
from sslkit.data.sources.folder import FileImages

print("begun")
pack.APART_FROM = 1
print(len(pack.pack(FileImages(Path(sys.argv[1])), Path(sys.argv[2]), size=32, workers=2)))
"""


def test_a_script_is_not_run_again_in_each_process(tmp_path):
    (tmp_path / "script.py").write_text(UNGUARDED)
    classes_of_pictures(tmp_path / "p")
    words = [sys.executable, tmp_path / "script.py", tmp_path / "p", tmp_path / "a.beton"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True, env=with_this_sslkit())
    assert done.stdout.split() == ["begun", "79"]


def with_this_sslkit():
    return os.environ | {"PYTHONPATH": PYTHONPATH}


@pytest.fixture
def started(monkeypatch):
    """The processes of every pool, by their number."""
    processes = {}

    class Pool(loky.ProcessPoolExecutor):
        def submit(self, *args, **options):
            future = super().submit(*args, **options)
            processes.update(self._processes)
            return future

    monkeypatch.setattr(loky, "ProcessPoolExecutor", Pool)
    return processes


def test_processes_answer_raise_and_end(started):
    assert list(ordered_map_by_processes(abs, [-3, 2, -1], workers=2, ahead=2)) == [3, 2, 1]
    assert set(ordered_map_by_processes(lambda _: os.getpid(), range(4), workers=2, ahead=4)) <= set(started)
    assert os.getpid() not in started
    with pytest.raises(ZeroDivisionError):
        list(ordered_map_by_processes(lambda number: 1 // number, [1, 0, 1], workers=2, ahead=2))
    assert not any(process.is_alive() for process in started.values())


def test_a_process_that_is_killed_is_an_error_and_no_hang(started):
    with pytest.raises(RuntimeError, match="has died"):
        list(ordered_map_by_processes(lambda _: os.kill(os.getpid(), signal.SIGKILL), range(3), workers=1, ahead=2))
    assert not any(process.is_alive() for process in started.values())


def test_a_packing_that_stops_ends_its_processes(tmp_path, apart, started):
    with pytest.raises(UserError, match="1 of the first 1 images"):
        pack(classes_of_pictures(tmp_path / "p"), tmp_path / "a.beton", size=32, workers=2, max_skipped=0)
    assert started
    assert not any(process.is_alive() for process in started.values())


def wide_grey(top):
    """A ramp from 0 to `top` in 16 bits, [64, 64]."""
    return np.linspace(0, top, 64 * 64).round().astype(np.uint16).reshape(64, 64)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_grey_of_fewer_bits_in_sixteen_is_as_bright_as_it_was(bits, form):
    pixels = to_square(encoded(Image.fromarray(wide_grey(2**bits - 1)), form), 64)
    np.testing.assert_allclose(pixels[..., 1], wide_grey(255), atol=1)


@pytest.fixture
def crowd(monkeypatch):
    """Every image is large, and memory allows two of them; the most that were decoded at once are noted."""
    monkeypatch.setattr(large, "LARGE", 100)
    monkeypatch.setattr(large, "_affordable", lambda: 2)
    now, most, lock = [], [0], threading.Lock()

    def slow(picture, size, fit):
        with lock:
            now.append(1)
            most[0] = max(most[0], len(now))
        time.sleep(0.005)
        with lock:
            now.pop()
        return to_square(picture, size, fit)

    monkeypatch.setattr(packing, "to_square", slow)
    return most


def test_few_large_pictures_are_decoded_at_once(tmp_path, crowd):
    for k in range(16):
        save(tmp_path / "p", f"{k}.png", halves(80, 80))
    assert len(pack(FileImages(tmp_path / "p"), tmp_path / "a.beton", size=32, workers=8)) == 16
    assert crowd[0] == 2


def test_processes_hand_large_pictures_back(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "APART_FROM", 1)
    here = []
    monkeypatch.setattr(packing, "to_square", lambda *how: here.append(1) or to_square(*how))
    for k in range(3):
        save(tmp_path / "p", f"{k}.png", halves(80, 80))
    save(tmp_path / "p", "1.png", Image.new("1", (5000, 4100), 1))
    store = pack(FileImages(tmp_path / "p"), tmp_path / "a.beton", size=32, workers=2)
    assert here == [1]
    assert near(store.read([1])[0, 16, 16], (255, 255, 255))
    assert near(store.read([2])[0, 4, 16], RED)


def test_no_reason_holds_a_memory_address():
    error = OSError("cannot identify image file <_io.BytesIO object at 0x7f0123abcdef>")
    assert packing._reason(error) == "OSError: cannot identify image file"


def test_a_file_cut_while_it_is_open_is_named_and_kills_nothing(tmp_path):
    store = pack(noise_images(), tmp_path / "a.beton", size=112, mode="raw")
    assert store.read([39]).any()
    os.truncate(store.path, 1 << 21)
    with pytest.raises(UserError, match=r"a\.beton has been cut short while it was open"):
        store.read([39])
