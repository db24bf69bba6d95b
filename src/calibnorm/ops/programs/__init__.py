"""The coefficient step of any method as a program for kernels: recorded, lowered to instructions, laid out in bytes."""

from __future__ import annotations

from calibnorm.ops.programs.program import Function, Program, Shapes, program_of
from calibnorm.ops.programs.steps import coefficients, gradients

__all__ = ["Function", "Program", "Shapes", "coefficients", "gradients", "program_of"]
