"""Pictures of plain numbers, all in one style: curves and other bands, final values, differences, ratios, features.

A function such as `curves` takes mappings from labels to numbers and returns a drawing: panels, axes and marks.
figure.py draws it with matplotlib, which is imported then; svg.py makes SVG of it and needs nothing.
"""

from calibnorm.report.pictures.bands import Point, bands, curves
from calibnorm.report.pictures.drawing import Drawing
from calibnorm.report.pictures.figure import figure, save
from calibnorm.report.pictures.matrix import matrix
from calibnorm.report.pictures.mosaic import Mosaic
from calibnorm.report.pictures.points import Seeds, differences, finals
from calibnorm.report.pictures.ratios import ratios
from calibnorm.report.pictures.shades import shades
from calibnorm.report.pictures.style import Style, styles

__all__ = [
    "Drawing",
    "Mosaic",
    "Point",
    "Seeds",
    "Style",
    "bands",
    "curves",
    "differences",
    "figure",
    "finals",
    "matrix",
    "ratios",
    "save",
    "shades",
    "styles",
]
