"""``python -m edgeship``."""

from edgeship.cli.main import main

main()
