"""The coefficient step of any method as a program for kernels: recorded, lowered to instructions, laid out in bytes."""

from __future__ import annotations

from calibnorm.ops.programs.program import Function, Program, Shapes, program_of
from calibnorm.ops.programs.steps import coefficients, gradients
from calibnorm.ops.programs.synchronized import (
    gradients_but_statistics,
    gradients_through_statistics,
    of_all,
    statistics,
)

__all__ = [
    "Function",
    "Program",
    "Shapes",
    "coefficients",
    "gradients",
    "gradients_but_statistics",
    "gradients_through_statistics",
    "of_all",
    "program_of",
    "statistics",
]
