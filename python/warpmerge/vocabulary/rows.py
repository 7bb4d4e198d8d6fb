"""The rows of embeddings and heads: which row of which model each row of the output comes from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any, NamedTuple

from ..dtypes import FLOAT32, FLOAT64, DType
from ..errors import UsageError
from ..models.reference import ModelRef
from ..models.row_views import MeanRows, RowsMean
from ..models.views import FileRegion, GatheredRows, JoinedParts, View
from ..recipe.tokenizer import Tokenizer, TokenRow
from .tokenizer_json import Token, TokenizerJson


class Input(NamedTuple):
    """A model that is merged with others in one tensor."""

    ref: ModelRef
    json: TokenizerJson
    view: View  # of its rows


class Rows:
    """The rows of the output.

    Args:
        choice: what the recipe says.
        json: the tokenizer of the output.
    """

    def __init__(self, choice: Tokenizer, json: TokenizerJson) -> None:
        self._choice, self._json = choice, json
        self._tokens = sorted(json.ids, key=json.ids.__getitem__)
        self.count = -(-len(self._tokens) // choice.multiple) * choice.multiple
        self._own: dict[tuple[int, int], Any] = {}
        self.without: dict[str, set[Token]] = {}  # by tensor the tokens that no model has

    def own(self, json: TokenizerJson, rows: int) -> Any:
        """For each token of the output its row in a model of this tokenizer and so many rows; -1: it has none."""
        import numpy as np

        key = id(json), rows
        if key not in self._own:
            found = np.arange(len(self._tokens), dtype=np.int64)
            shared = json.shared(self._json)
            more = self._tokens[shared:]
            found[shared:] = np.fromiter(map(json.ids.get, more, repeat(-1)), np.int64, len(more))
            self._own[key] = np.where(found < rows, found, -1)
        return self._own[key]

    def _index(self, number: int, own: Any, base: int | None, inputs: Sequence[Input], name: str) -> Any:
        """(K, V) integers: from which row of each input the rows of the input `number` are taken; -1: from none.

        Several mean the mean of these rows. The row of a token that the input lacks is that of the base, else the mean
        of the rows of all that have it.
        """
        import numpy as np

        index = np.full_like(own, -1)
        index[number] = own[number]
        missing = np.flatnonzero(own[number] < 0)
        if base is not None:
            index[base, missing] = own[base, missing]
            missing = missing[own[base, missing] < 0]
        index[:, missing] = own[:, missing]
        for token, row in self._choice.tokens.items():
            place = self._json.ids[token]
            if own[number, place] >= 0 and not row.force:
                continue
            if row.needs_source:
                raise UsageError(
                    f"tokenizer: tokens: {token!r}: the model '{inputs[number].ref}' lacks the token; name a 'source'."
                )
            index[:, place] = -1
            if row.model is not None:
                donor, found = _source(row, token, inputs, name)
                index[donor, place] = found
        return index

    def views(self, inputs: Sequence[Input], base: int | None, dtype: DType | None, name: str) -> list[View]:
        """For each input the view of its rows in the order of the output.

        Args:
            inputs: the models that are merged in the tensor `name`.
            base: the number of the one that is the base, or None.
            dtype: what the recipe computes in, at least.
            name: the tensor's.
        """
        import numpy as np

        wide = promoted([i.view.dtype for i in inputs] + ([dtype] if dtype else []))
        own = np.stack([self.own(i.json, i.view.shape[0]) for i in inputs])
        nobody = {self._tokens[place] for place in np.flatnonzero((own < 0).all(0))}
        self.without[name] = nobody.difference(self._choice.tokens)
        made = []
        for number in range(len(inputs)):
            index = self._index(number, own, base, inputs, name)
            made.append(self._padded(_view(inputs, number, index, wide, name), name))
        return made

    def _padded(self, view: View, name: str) -> View:
        """With rows up to `count`. They are the mean of all rows."""
        import numpy as np

        more = self.count - view.shape[0]
        return (
            JoinedParts([view, GatheredRows(RowsMean(view), np.zeros(more, np.int64), name)], 0, name) if more else view
        )


def _source(row: TokenRow, token: str, inputs: Sequence[Input], name: str) -> tuple[int, int]:
    """The input and its row that `tokens` names."""
    where = f"tokenizer: tokens: {token!r}"
    donor = next((number for number, found in enumerate(inputs) if found.ref == row.model), None)
    if donor is None:
        listed = ", ".join(f"'{found.ref}'" for found in inputs)
        raise UsageError(f"{where}: the source '{row.model}' is no model of the tensor '{name}'; these are: {listed}.")
    ids, rows = inputs[donor].json.ids, inputs[donor].view.shape[0]
    wanted = token if row.other is None else row.other
    number = wanted if isinstance(wanted, int) else ids.get(wanted, rows)
    if number >= rows:
        what = f"row {wanted}" if isinstance(wanted, int) else f"the token {wanted!r}"
        raise UsageError(f"{where}: the source '{row.model}' lacks {what}.")
    return donor, number


def _view(inputs: Sequence[Input], number: int, index: Any, wide: DType, name: str) -> View:
    used = [place for place, rows in enumerate(index) if (rows >= 0).any()] or [number]
    sources, index = [inputs[place].view for place in used], index[used]
    if len(used) == 1 and (index >= 0).all():
        return gathered(sources[0], index[0], name)
    kinds = {source.dtype for source in sources}
    has_means = bool(((index >= 0).sum(0) > 1).any())
    return MeanRows(sources, index, wide if has_means or len(kinds) > 1 else kinds.pop(), name)


def gathered(source: View, index: Any, name: str) -> View:
    """These rows of a view. A range of the rows of a file is a region of it."""
    import numpy as np

    first = int(index[0]) if len(index) else 0
    if not np.array_equal(index, np.arange(first, first + len(index))):
        return GatheredRows(source, index, name)
    if first == 0 and len(index) == source.shape[0]:
        return source
    if not isinstance(source, FileRegion):
        return GatheredRows(source, index, name)
    row = source.nbytes // source.shape[0]
    return FileRegion(source.dtype, (len(index), *source.shape[1:]), source.file, source.offset + first * row)


def promoted(dtypes: Sequence[DType]) -> DType:
    """The narrowest type that holds the values of all."""
    found = set(dtypes)
    if len(found) == 1:
        return found.pop()
    return FLOAT64 if FLOAT64 in found else FLOAT32
