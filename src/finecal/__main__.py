"""``python -m finecal`` is ``finecal``."""

from .cli import main

raise SystemExit(main())
