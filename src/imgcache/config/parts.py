"""One file of an inventory: read, checked against the schema, and not yet laid over the others."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from imgcache.config.problems import add_problems
from imgcache.config.schema import InventoryEntry, PartEntry

if TYPE_CHECKING:
    from imgcache.document import Data, Document, Node

Model = TypeVar("Model", bound=BaseModel)
Keys = tuple[str | int, ...]

#: Keys of the main file.
_MAIN_ONLY = tuple(key for key in InventoryEntry.model_fields if key not in PartEntry.model_fields)


@dataclass(slots=True)
class Part:
    """What one file says about hosts."""

    document: Document
    entry: PartEntry
    host_keys: dict[str, Keys] = field(default_factory=dict)
    """Where each host stands in the document, if not below its aggregate."""

    def place(self, aggregate: str, index: int) -> Keys:
        """Return where a host of an aggregate stands in the document."""
        keys = self.host_keys.get(self.entry.aggregates[aggregate].hosts[index].name)
        return keys or ("aggregates", aggregate, "hosts", index)


def validated(document: Document, model: type[Model]) -> Model | None:
    """Return what a document says; None, and problems noted, when the schema refuses it.

    Top-level keys ``x-…`` are left out: they hold what is used elsewhere by its anchor.
    """
    left_out = [key for key in document.root.entries if key.startswith("x-")]
    if model is PartEntry:
        for key in _MAIN_ONLY:
            if key in document.root.entries:
                document.add((key,), "belongs into the file that includes this one", at_key=True)
                left_out.append(key)
    document.root = _without(document.root, left_out)
    document.note_empty_values()
    try:
        context = {"folder": document.path.absolute().parent}
        return model.model_validate(document.root.data, context=context)
    except ValidationError as exc:
        add_problems(document, exc)
        return None


def _without(root: Node, keys: list[str]) -> Node:
    if not keys:
        return root
    kept = {key: entry for key, entry in root.entries.items() if key not in keys}
    data: Data = {key: node.data for key, (_, _, node) in kept.items()}
    return replace(root, data=data, entries=kept)


def plain_settings(entry: BaseModel) -> dict[str, Any]:
    """Return what was given, by key."""
    return {key: getattr(entry, key) for key in entry.model_fields_set}
