"""The wider family of losses: each with inputs of its own, and its textbook form beside it."""

from catalogue.family import classes, labels, metric, others, pairs, views
from catalogue.family.case import FamilyCase

GROUPS = labels, views, pairs, metric, classes, others
FAMILY: dict[str, FamilyCase] = {case.name: case for group in GROUPS for case in group.CASES}
