"""``python -m finecal`` is ``finecal``."""

from .cli.arguments import main

raise SystemExit(main())
