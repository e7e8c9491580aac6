"""All mutants."""

from __future__ import annotations

from tests.mutants.ends import ENDS
from tests.mutants.hazards import HAZARDS
from tests.mutants.nodes import NODES
from tests.mutants.others import OTHERS
from tests.mutants.rules import RULES
from tests.mutants.waits import WAITS
from tests.mutants.workshop import Mutant

__all__ = ["MUTANTS"]

MUTANTS: tuple[Mutant, ...] = (*HAZARDS, *RULES, *ENDS, *OTHERS, *NODES, *WAITS)
