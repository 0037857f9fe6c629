"""The stores that a run trains and is evaluated on, packed on demand from its settings."""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from sslkit import plugins
from sslkit.config.base import Choice
from sslkit.data.digests import remember
from sslkit.data.images import Images, Role, Triple
from sslkit.data.overview import copies_across, has_classes, too_few
from sslkit.data.packing.pack import concrete_mode, name_skipped, pack
from sslkit.data.packing.store import Store, sidecar
from sslkit.data.pictures import printable
from sslkit.data.sources.base import Source
from sslkit.data.split import stratified_split
from sslkit.errors import UserError
from sslkit.machine.atomic import recover
from sslkit.machine.cache import cache_dir, digest
from sslkit.machine.progress import progress_bar, terminal_stderr

FORMAT = 2
"""Format version, raised when the same settings give other bytes, so that old caches are not reused."""


@dataclass(frozen=True)
class Stores:
    """The images of a run."""

    pretrain: Store
    """Images of the method; their labels are passed on only if it uses them."""
    train: Store | None
    """Labelled images that evaluators are trained on; None: there are no labels."""
    test: Store | None
    """Labelled images that evaluators are tested on."""
    image_size: int
    """Height and width of a view, in pixels."""
    mean: Triple
    """Mean of red, green and blue, 0 to 1."""
    std: Triple
    """Standard deviation of red, green and blue."""
    protocol: str
    """Description of the evaluation data: trained on what, tested on what."""
    unlabelled: str = ""
    """Reason why there are no labelled images to evaluate on, where it is known."""

    @property
    def digests(self) -> dict[str, str]:
        """Identify the images of each part, pretrain, train and test, and their size; equal wherever they lie."""
        parts = {"pretrain": self.pretrain, "train": self.train, "test": self.test}
        size = f"views of {self.image_size} px, {self.pretrain.stored}"
        return {name: store.digest for name, store in parts.items() if store} | {"size": size}

    @property
    def labelled(self) -> bool:
        """True if there are labelled images to evaluate on; otherwise those of pre-training take their place."""
        return self.train is not None and self.test is not None


def open_stores(
    choice: Choice,
    eval_choice: Choice | None,
    seed: int,
    log: Callable[[str], None] = print,
    *,
    seen: bool = True,
) -> Stores:
    """Open the stores of `data=` and `eval_data=`, and pack those that are not in the cache yet.

    seen: False if the network to evaluate was not pre-trained on these images, which the protocol states.
    Raises UserError if the images are unavailable, too many are unreadable, or `eval_data` has no labels.
    """
    source = _source(choice)
    image_size = source.image_size()
    # Killed processes leave temporary files behind.
    recover(cache_dir(source.config.cache))
    for line in source.found():
        log(line)
    opener = _Opener(choice.name, source, source.store_size(image_size), log)
    pretrain = opener.open("pretrain")
    if pretrain is None:
        raise UserError(f"{choice.name} has no images to pre-train on")
    if eval_choice is None:
        evaluation = _own_evaluation(opener, pretrain, seed, seen)
    else:
        evaluation = _other_evaluation(eval_choice, image_size, seed, log)
    if evaluation.train and evaluation.test:
        _log_copies(evaluation.train, evaluation.test, log)
    mean, std = choice.options.mean, choice.options.std  # type: ignore[attr-defined]
    return Stores(pretrain, image_size=image_size, mean=mean, std=std, **vars(evaluation))


def _log_copies(train: Store, test: Store, log: Callable[[str], None]) -> None:
    # Without digests beside the file, each start would read all of it.
    if "digest" not in train.about or "digest" not in test.about:
        return
    if copies := copies_across(train.digests, test.digests):
        log(copies)


def pack_source(choice: Choice, out: Path, role: Role = "pretrain", log: Callable[[str], None] = print) -> Store:
    """Pack the images of a role to `out`, a new .beton file that `data=` takes.

    Raises UserError if `out` exists or has another ending, the source has no such images, or too many of them
    are unreadable.
    """
    if out.suffix != ".beton":
        raise UserError(f"{out} must end in .beton")
    if out.exists():
        raise UserError(f"{out} exists; delete it, or choose another name")
    source = _source(choice)
    images = source.images(role)
    if images is None:
        raise UserError(f"{choice.name} has no images to {role} on; choose another --role")
    for line in source.found():
        log(line)
    opener = _Opener(choice.name, source, source.store_size(source.image_size()), log)
    return opener.pack(images, role, out)


ROLES: tuple[Role, ...] = ("train", "test", "pretrain")


@dataclass(frozen=True)
class _Evaluation:
    """Labelled images to evaluate on, or the reason why there are none."""

    train: Store | None
    test: Store | None
    protocol: str
    unlabelled: str = ""


def _own_evaluation(opener: "_Opener", pretrain: Store, seed: int, seen: bool) -> _Evaluation:
    pair = _pair(opener)
    if pair:
        return pair
    if has_classes(pretrain.labels):
        split = f"stratified fifth of {opener.title} held out by seed {seed}"
        return _held_out(pretrain, seed, f"{split} (seen unlabelled in pre-training)" if seen else split)
    test = opener.open("test", labelled=True)
    if test and has_classes(test.labels):
        return _held_out(test, seed, f"stratified fifth of {opener.title} (test) held out by seed {seed}")
    reason = opener.unlabelled()
    because = f" ({reason})" if reason else ""
    return _Evaluation(
        None, None, f"{len(pretrain)} images of {opener.title}, which has no labels{because}", unlabelled=reason
    )


def _other_evaluation(choice: Choice, image_size: int, seed: int, log: Callable[[str], None]) -> _Evaluation:
    """Open other evaluation data, at the image size of pre-training unless `eval_data` sets its own."""
    source = _source(choice)
    size = source.config.image_size or image_size
    for line in source.found():
        log(f"eval_data: {line}")
    opener = _Opener(choice.name, source, source.store_size(size), log)
    pair = _pair(opener)
    if pair:
        return pair
    for role in ROLES:
        store = opener.open(role, labelled=True)
        if store and has_classes(store.labels):
            return _held_out(store, seed, f"stratified fifth of {opener.title} held out by seed {seed}")
    because = f" ({reason})" if (reason := opener.unlabelled()) else ""
    raise UserError(f"eval_data: {opener.title} has no labels{because}; name data that has")


def _pair(opener: "_Opener") -> _Evaluation | None:
    train = opener.open("train", labelled=True)
    test = train and opener.open("test", labelled=True)
    if not train or not test or train.labels is None or test.labels is None:
        return None
    if train.classes != test.classes:
        raise UserError(f"{opener.title}: its train and test images have different classes; give both the same")
    train, test = (
        train.subset(np.flatnonzero(train.labels >= 0)),
        test.subset(np.flatnonzero(test.labels >= 0)),
    )
    return _Evaluation(train, test, f"{opener.title}: train {len(train)} -> test {len(test)}")


def _held_out(store: Store, seed: int, split: str) -> _Evaluation:
    if store.labels is None:
        raise ValueError("only labelled images can be held out")
    train, test = (store.subset(rows) for rows in stratified_split(store.labels, seed))
    if not len(test):
        protocol = f"images of pre-training, for want of enough labelled images to hold any out ({split})"
        return _Evaluation(None, None, protocol, too_few(store.labels))
    return _Evaluation(train, test, f"{split}: train {len(train)} -> test {len(test)}")


def _source(choice: Choice) -> Source:
    source: Source = plugins.find("datasets", choice.name)(choice.options)
    return source


class _Opener:
    """Opens the roles of one source at one size, each set of images once."""

    def __init__(self, name: str, source: Source, size: int, log: Callable[[str], None]) -> None:
        self.name, self.source, self.size, self.log = name, source, size, log
        root = source.config.root
        self.title = printable(str(root)) if root else name
        self._opened: dict[str, Store] = {}

    def open(self, role: Role, labelled: bool = False) -> Store | None:
        """Open a role; None if the source has no such images, or, with `labelled`, no labels for them."""
        ready = self.source.packed(role, self.size)
        if ready:
            ready.check(self.source.config.cache)
            return ready
        images = self.source.images(role)
        if images is None or (labelled and not images.classes and images.labels is None):
            return None
        key = self._key(images)
        if key not in self._opened:
            store = self._open_cached(key) or self.pack(images, role, self._path(role, key))
            store.skipped = [*images.skipped, *store.skipped]
            self._opened[key] = store
        return self._opened[key]

    def unlabelled(self) -> str:
        """Return the reason why the images of pre-training have no labels; "" if it is not known."""
        images = self.source.images("pretrain")
        return images.unlabelled if images is not None else ""

    def _key(self, images: Images) -> str:
        """Return a digest of all that decides the packed bytes, equal for roles with the same images."""
        config = self.source.config
        mode = concrete_mode(config.mode, self.size)
        quality = config.jpeg_quality if mode == "jpeg" else None
        return digest(FORMAT, images.fingerprint(), self.size, mode, quality, config.fit, config.max_pixels)

    def _path(self, role: Role, key: str) -> Path:
        """Return the path of a new packed file, whose name tells a person what it holds, and the key the program."""
        named = re.sub(r"[^\w.+-]+", "-", Path(self.source.config.root).stem if self.source.config.root else self.name)
        about = f"{named[:40]}-{role}-{self.size}px-{date.today().isoformat()}"
        return cache_dir(self.source.config.cache) / f"{about}-{key}.beton"

    def _open_cached(self, key: str) -> Store | None:
        """Open the newest packed file of this key, and check all its bytes."""
        for path in sorted(cache_dir(self.source.config.cache).glob(f"*-{key}.beton"), reverse=True):
            try:
                store = Store(path)
                store.check(self.source.config.cache)
                return store
            except UserError as error:
                self.log(f"packing again: {error}")
                # In a cache that cannot be written, packing gives the reason.
                with suppress(OSError):
                    path.unlink()
                    sidecar(path).unlink()
        return None

    def pack(self, images: Images, role: Role, path: Path) -> Store:
        """Pack at this size, and log the settings and the skipped images."""
        config = self.source.config
        mode = concrete_mode(config.mode, self.size)
        storage = "raw" if mode == "raw" else f"JPEG quality {config.jpeg_quality}"
        self.log(f"packing {self.title} ({role}): {self.size} px, {storage}, into {path}")
        recover(path.parent)
        # Read before, because this shows a progress of its own.
        _ = images.digests
        with progress_bar(terminal_stderr()) as update:
            store = pack(
                images,
                path,
                size=self.size,
                mode=mode,
                jpeg_quality=config.jpeg_quality,
                fit=config.fit,
                max_skipped=config.max_skipped,
                max_pixels=config.max_pixels,
                progress=lambda done, total: update(done, total, f"packing {self.title}: {done:,} of {total:,}"),
            )
        remember(path, store.about["content"], config.cache)
        if store.skipped:
            self.log(f"skipped {len(store.skipped)} unreadable images:\n{name_skipped(store.skipped)}")
        return store
