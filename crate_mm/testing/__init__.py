"""Checks of the contracts, for parts of your own: each raises ``ValueError`` with a sentence that names the fault."""

from .task import check_task
