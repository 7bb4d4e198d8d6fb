"""Models made of checkpoints: tensors of several under names of their own, tensors with other views in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .checkpoint import Checkpoint, TensorFiles
from .view_columns import FileColumn
from .views import View


class Picked:
    """A model (models.view_columns.Model). Nothing is copied: its views are those of the checkpoints.

    Args:
        title: what messages call it.
        places: of each tensor its name, the checkpoint that holds it and its name there.
    """

    def __init__(self, title: str, places: Mapping[str, tuple[Checkpoint, str]]) -> None:
        self.title, self._places = title, places
        self.names = list(places)
        self._whole: dict[int, FileColumn] = {}

    def column(self, names: Sequence[str]) -> FileColumn:
        """The views of these tensors, in this order; rows of names that the model lacks must not be used."""
        return FileColumn.picked([self._place(*self._places[name]) if name in self._places else None for name in names])

    def _place(self, checkpoint: Checkpoint, name: str) -> tuple[FileColumn, int]:
        if id(checkpoint) not in self._whole:
            self._whole[id(checkpoint)] = checkpoint.column(checkpoint.names)
        return self._whole[id(checkpoint)], checkpoint.rows[name]

    def holder(self, name: str) -> Checkpoint | None:
        """The checkpoint that holds this tensor."""
        return self._places[name][0] if name in self._places else None

    def is_quantized(self) -> bool:
        return any(checkpoint.is_quantized() for checkpoint, _ in self._places.values())


class Replaced:
    """A model (models.view_columns.Model) that offers other views in place of some tensors of another one."""

    def __init__(self, model: TensorFiles | Picked, views: Mapping[str, View]) -> None:
        self._model, self._views = model, views
        self.title, self.names = model.title, model.names

    def column(self, names: Sequence[str]) -> FileColumn:
        """The views of these tensors, in this order; rows of names that the model lacks must not be used."""
        column = self._model.column(names)
        column.replace({row: self._views[name] for row, name in enumerate(names) if name in self._views})
        return column

    def is_quantized(self) -> bool:
        return self._model.is_quantized()
