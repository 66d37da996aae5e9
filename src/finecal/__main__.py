"""``python -m finecal`` is ``finecal``."""

from ._cli.arguments import main

raise SystemExit(main())
