"""Settings: typed models, `key=value` and YAML merged into one frozen `RunConfig`, every mistake in one message."""

from pathlib import Path

from sslkit.hookspecs import Register, hookimpl


@hookimpl
def register_recipes(register: Register) -> None:
    register_folder(register, Path(__file__).parent / "recipes")


def register_folder(register: Register, folder: Path) -> None:
    """Register every YAML file of a folder as a recipe of its name, for the hook `register_recipes`."""
    for path in sorted(folder.glob("*.yaml")):
        register(path.stem, path)
