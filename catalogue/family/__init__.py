"""The wider family of losses: each with inputs of its own, and its textbook form beside it."""

from catalogue.family import classes, labels, metric, pairs, views
from catalogue.family.case import FamilyCase

GROUPS = labels, views, pairs, metric, classes
FAMILY: dict[str, FamilyCase] = {case.name: case for group in GROUPS for case in group.CASES}
from catalogue.family import labels, others
from catalogue.family.case import FamilyCase

FAMILY: dict[str, FamilyCase] = {case.name: case for case in (*labels.CASES, *others.CASES)}
