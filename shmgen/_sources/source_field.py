"""`SourceField`: one of the fields that a source fills."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from shmgen._samples.sample_spec import ANY, SampleSpec
from shmgen._sources.base import Source

Measure: TypeAlias = Literal["length", "mask"]


@dataclass(frozen=True)
class SourceField:
    """One of the fields that a source fills: what ``source["image"]`` is. However many are used, a sample is read once.

    Attributes:
        source: which fills it.
        key: of the field in the source; None if that has only one.
        given: what the user says of its rows.
        measure: what is measured of the field's rows, in place of these; None for the rows themselves.

    Examples:
        >>> pairs = Function(lambda id: {"x": np.full(3, id), "y": id % 2})
        >>> loader = Loader(range(8), inputs=pairs["x"], targets=pairs["y"], batch_size=4, shuffle=False)
        >>> X, y = loader.batch(1)
        >>> X[:, 0], y
        (array([4, 5, 6, 7]), array([0, 1, 0, 1]))
        >>> isinstance(pairs["x"], SourceField)
        True
    """

    source: Source
    key: Hashable | None = None
    given: SampleSpec = ANY
    measure: Measure | None = None

    @property
    def length(self) -> SourceField:
        """The field that says how much of a padded row is the sample's, along its first axis; int64, of shape ``()``."""
        return replace(self, measure="length")

    @property
    def mask(self) -> SourceField:
        """The field that is true where a padded row is the sample's; of shape ``dim``; bool, and as weights float32."""
        return replace(self, measure="mask")
