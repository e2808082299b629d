"""Optimizers, gradients, schedules and parameter groups."""

from .wrapper import AmpOptimWrapper, AutocastOptimWrapper, Lion, OptimWrapper, amp_dtype, amp_optim_wrapper
