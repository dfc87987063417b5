"""A build's results in the forms that continuous integration reads. Pure but for the base build and the comment."""

from edgeship.build.ci.base import read_base
from edgeship.build.ci.render import FORMATS, comment, render

__all__ = ["FORMATS", "comment", "read_base", "render"]
