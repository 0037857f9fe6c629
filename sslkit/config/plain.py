"""Scalars as they are typed: text first, whose type is that of the field that they are for.

Where no field decides, text is read by the core schema of YAML 1.2: 010 is ten, and 1:30, off and 2024-01-01 are text.
Neither torch nor pydantic is imported.
"""

import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from sslkit.config.reading import NotYaml, Plain, read_yaml

CORE = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
INTEGER = re.compile(r"[-+]?[0-9]+")
BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
ENDLESS = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
CONTAINERS = (list, tuple, dict, set, frozenset)


def guessed(value: Any) -> Any:
    """Return the value with each plain scalar in it read by YAML 1.2, for a reader that knows no field."""
    if isinstance(value, Plain):
        return _listed(value, Any) if value.startswith("[") else _core(value)
    if isinstance(value, Mapping):
        return {key: guessed(inner) for key, inner in value.items()}
    return [guessed(inner) for inner in value] if isinstance(value, list) else value


def typed(value: Any, annotation: Any) -> Any:
    """Return the value with each plain scalar in it read as the type that a field is annotated with.

    A field of text or of a path gets exactly what is written. What does not fit is left for validation to refuse.
    """
    if isinstance(value, Plain):
        return _as(value, annotation)
    if isinstance(value, list):
        return [typed(inner, annotation) for inner in value]
    if not isinstance(value, Mapping):
        return value
    fields: dict[str, Any] = next(
        (atom.model_fields for atom in _atoms(annotation) if hasattr(atom, "model_fields")), {}
    )
    return {k: typed(v, fields[k].annotation if k in fields else annotation) for k, v in value.items()}


def _as(text: Plain, annotation: Any) -> Any:
    atoms = _atoms(annotation)
    if text.startswith("[") and not atoms.isdisjoint(CONTAINERS):
        return _listed(text, annotation)
    if text in atoms or (_are_texts(atoms) and not (type(None) in atoms and _is_null(text))):
        return str(text)
    return guessed(text)


def _is_null(text: str) -> bool:
    """Return True for null and nothing; `~` is a folder where a path is meant."""
    return text != "~" and CORE.get(text, text) is None


def _are_texts(atoms: set[Any]) -> bool:
    # Options of somebody else's component are of any type, though their names are texts.
    return Any not in atoms and not atoms.isdisjoint((str, Path)) and atoms.isdisjoint((int, float, bool))


def _listed(text: Plain, annotation: Any) -> Any:
    try:
        return guessed(read_yaml(text)) if annotation is Any else typed(read_yaml(text), annotation)
    except NotYaml:
        return str(text)


def _atoms(annotation: Any) -> set[Any]:
    """Return the types, and the strings of literals, that an annotation is made of."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return {value for value in inner if isinstance(value, str)}
    if origin is Annotated:
        return _atoms(inner[0])
    if origin in (Union, types.UnionType):
        return set().union(*map(_atoms, inner))
    return {origin}.union(*map(_atoms, inner)) if origin else {annotation}


def _core(text: str) -> Any:
    """Return the value of a scalar in the core schema of YAML 1.2; text that is no number, boolean or null as it is."""
    if text in CORE:
        return CORE[text]
    try:
        if INTEGER.fullmatch(text):
            return int(text)
        if BASED.fullmatch(text):
            return int(text, 0)
    except ValueError:
        # Python converts no more than 4,300 digits.
        return str(text)
    if FLOAT.fullmatch(text):
        return float(text)
    return float(text.replace(".", "")) if ENDLESS.fullmatch(text) else str(text)
