"""Pictures, files and sentences that evaluators add to their results."""

from pathlib import Path


class Attachments:
    """Files and notes of one evaluator after the other."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: the run, or another folder for files; None keeps none."""
        self.files: list[dict[str, str]] = []
        """Files attached since `begin`: {"path": relative to the folder, "alt": text alternative}."""
        self.notes: list[str] = []
        """Sentences since `begin`."""
        self._folder = folder
        self._evaluator = ""

    def begin(self, evaluator: str) -> None:
        """From now on files and notes belong to the evaluator of that name."""
        self._evaluator, self.files, self.notes = evaluator, [], []

    def attach(self, name: str, alt: str) -> Path | None:
        """Return where to write the file `name` of this evaluation; None if files are not kept: then draw nothing.

        alt: text alternative, for readers who cannot see the picture.
        """
        if self._folder is None:
            return None
        path = self._folder / "figures" / self._evaluator / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.files.append({"path": path.relative_to(self._folder).as_posix(), "alt": alt})
        return path

    def note(self, text: str) -> None:
        """Add one sentence to the result: "cat taken for dog: 31 of 300"."""
        self.notes.append(text)
