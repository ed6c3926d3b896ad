"""Whether the tables of an attention weigh each key by the weight of the site's that belongs to it."""

from __future__ import annotations

import numpy as np

from onnxopt.discover.attention_site import AttentionSite
from onnxopt.plan.tables.types import AttentionTables
from onnxopt.validate.failure import PlanError
from onnxopt.validate.launch import Array


class KeyWeightsCheck:
    """Run-time weights of a site against those of its tables; ``pair`` is what tells its keys (heads x keys) apart.

    Raises :class:`PlanError` at once where tensor, width or epsilons are others. Weights that were given to the
    tables of a site that describes none, but has a mask that depends on the input, pass.
    """

    def __init__(self, site: AttentionSite, tables: AttentionTables, pair: Array) -> None:
        self.site, self.tables, self.pair, self.weights = site, tables, pair, site.weights
        self._columns: dict[int, tuple[Array, Array]] = {}
        weights = self.weights
        if weights is None:
            if tables.epsilons is not None and not site.runtime:
                raise PlanError(f"{site.id}: its tables weigh the keys, which the site does not")
            return
        if tables.epsilons is None or tables.columns is None or tables.diagonals is None:
            raise PlanError(f"{site.id}: its tables leave out the run-time weights {weights.tensor!r}")
        if tables.inputs[3:] != ((weights.tensor,),) or tables.kernel.columns != weights.width:
            raise PlanError(
                f"{site.id}: its run-time weights are {tables.kernel.columns} columns of {tables.inputs[3:]}, expected "
                f"{weights.width} of {weights.tensor!r}"
            )
        if not np.array_equal(tables.epsilons, np.array(weights.epsilons, np.float32)):
            raise PlanError(
                f"{site.id}: {tables.epsilons.tolist()} are added to weights and sum, expected {weights.epsilons}"
            )

    def check_job(self, name: str, line: list[int], read: tuple[Array, Array, Array], codes: Array) -> None:
        """One job: ``read`` are head, row and place of each row that is read, ``codes`` the pair of each key."""
        assert self.weights is not None
        assert self.tables.columns is not None
        assert self.tables.diagonals is not None
        heads, rows, places = read
        columns = self.tables.columns[line[4] : line[4] + line[5]]
        for head in np.unique(heads).tolist():
            known, wanted = self._of_head(head)
            at = np.minimum(np.searchsorted(known, codes), len(known) - 1)
            wrong = np.flatnonzero((known[at] == codes) & (wanted[at] != columns))
            if wrong.size:
                first = int(wrong[0])
                raise PlanError(
                    f"{name}: a key has column {columns[first]} of the weights, expected {wanted[at[first]]}"
                )
        diagonals = self.tables.diagonals[line[2] : line[2] + line[3]][places]
        wrong = np.flatnonzero(diagonals != self.weights.diagonals[rows])
        if wrong.size:
            row = int(rows[wrong[0]])
            raise PlanError(
                f"{name}: query {row} sees column {diagonals[wrong[0]]} with weight 1, expected "
                f"{self.weights.diagonals[row]}"
            )

    def _of_head(self, head: int) -> tuple[Array, Array]:
        """The pairs of a head that any row needs, ascending, and the column of each."""
        if head not in self._columns:
            assert self.weights is not None
            used = np.unique(self.site.lists_of(head).keys)
            codes, columns = self.pair[head, used], self.weights.columns[used]
            known, first, which = np.unique(codes, return_index=True, return_inverse=True)
            if np.any(columns[first][which] != columns):
                raise PlanError(f"{self.site.id}: the same key of head {head} has two columns of the run-time weights")
            self._columns[head] = known, columns[first]
        return self._columns[head]
