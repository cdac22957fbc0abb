"""Plans found by measurement: `search`, and what it is made of."""

from .api import search
from .found import Ahead, Found, Measure, Point, Result
from .searching import Turn

__all__ = ["Ahead", "Found", "Measure", "Point", "Result", "Turn", "search"]
