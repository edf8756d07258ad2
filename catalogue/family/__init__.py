"""The wider family of losses: each with inputs of its own, and its textbook form beside it."""

from catalogue.family import labels, others
from catalogue.family.case import FamilyCase

FAMILY: dict[str, FamilyCase] = {case.name: case for case in (*labels.CASES, *others.CASES)}
