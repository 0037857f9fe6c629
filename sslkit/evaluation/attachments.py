"""Pictures, other files and notes that evaluators attach to their results."""

from pathlib import Path


class Attachments:
    """Files and notes of the current evaluator."""

    def __init__(self, folder: Path | None = None) -> None:
        """folder: the run directory, or another folder for files; None: no files are kept."""
        self.files: list[dict[str, str]] = []
        """Files attached since `begin`: {"path": relative to the folder, "alt": text alternative}."""
        self.notes: list[str] = []
        """Notes since `begin`, one sentence each."""
        self._folder = folder
        self._evaluator = ""

    def begin(self, evaluator: str) -> None:
        """Start collecting files and notes for the evaluator of that name."""
        self._evaluator, self.files, self.notes = evaluator, [], []

    def attach(self, name: str, alt: str) -> Path | None:
        """Return the path to which the evaluator is to write the file `name`; None if files are not kept.

        alt: text alternative, for readers who cannot see the picture.
        """
        if self._folder is None:
            return None
        path = self._folder / "figures" / self._evaluator / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.files.append({"path": path.relative_to(self._folder).as_posix(), "alt": alt})
        return path

    def note(self, text: str) -> None:
        """Add a one-sentence note to the result: "cat taken for dog: 31 of 300"."""
        self.notes.append(text)
