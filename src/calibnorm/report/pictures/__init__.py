"""Pictures of plain numbers, all in one style: curves and other bands, final values, differences, ratios.

A drawing takes mappings from labels to numbers and returns a figure. matplotlib is imported when something is drawn.
"""

from calibnorm.report.pictures.bands import Point, bands, curves
from calibnorm.report.pictures.points import Seeds, differences, finals
from calibnorm.report.pictures.ratios import ratios
from calibnorm.report.pictures.style import Style, save, styles

__all__ = ["Point", "Seeds", "Style", "bands", "curves", "differences", "finals", "ratios", "save", "styles"]
