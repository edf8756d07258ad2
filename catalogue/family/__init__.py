"""The wider family of losses: each with inputs of its own, and its textbook form beside it."""

from catalogue.family import labels, pairs
from catalogue.family.case import FamilyCase

FAMILY: dict[str, FamilyCase] = {case.name: case for case in (*labels.CASES, *pairs.CASES)}
