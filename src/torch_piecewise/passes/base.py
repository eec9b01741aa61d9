"""What a graph pass is; what one run of it leaves behind is a :class:`~torch_piecewise.events.PassRecord`."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from torch_piecewise.errors import FingerprintError
from torch_piecewise.events import PassRecord as PassRecord
from torch_piecewise.passes.context import get_pass_context
from torch_piecewise.passes.identity import Identity, identity_of
from torch_piecewise.ranges import Range


@dataclass(frozen=True)
class GraphPass(ABC):
    """A rewrite of an ATen graph, as a value: its options are its fields.

    A subclass is a frozen dataclass with ``__call__``; every option that changes what it does is a field,
    so that two passes are equal, and have one :meth:`uuid`, exactly if they do the same.

    The graph is at Inductor's post-grad level: ATen and custom operators, decomposed, free of mutation but
    for the final ``copy_`` into inputs, fake tensors under ``node.meta["val"]``. The pass changes it in
    place and must leave it in order: every value defined before its use, the same placeholders, as many
    outputs as before.

    Attributes:
        helpers: functions, classes and modules the pass rests on that its code does not name.
    """

    helpers: ClassVar[tuple[object, ...]] = ()

    @abstractmethod
    def __call__(self, graph: fx.Graph) -> int | None:
        """Rewrite ``graph`` in place.

        Returns:
            How many places were rewritten; None if the pass does not count.
        """

    def is_applicable_for_range(self, range: Range) -> bool:
        """Whether the pass may run on a graph that serves every size in ``range``.

        Runs outside any compile of ours get the whole range from 0 on.
        """
        return True

    @property
    def name(self) -> str:
        """How records, dumps and messages call it: the class name in lower case, with underscores."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    def uuid(self) -> str:
        """What the pass does, as a digest that is the same in every process and does not hold the range.

        Made of the source of its class and of all classes it derives from, its fields, and every function,
        class and constant that these name, again and again.

        Raises:
            FingerprintError: some of that has no stable identity.
        """
        return self.identity().digest

    def identity(self) -> Identity:
        """What :meth:`uuid` is made of.

        Raises:
            FingerprintError: some of it has no stable identity.
        """
        return identity_of(self, what=f"The pass {self.name}", stop_at=(GraphPass, ABC))

    def reads_range(self) -> bool:
        """Whether what the pass writes may depend on the range.

        It may if its code asks for the pass context, or cannot be looked into.
        """
        asked = f"{get_pass_context.__module__}.{get_pass_context.__qualname__}"
        try:
            return asked in self.identity().names
        except FingerprintError:
            return True
