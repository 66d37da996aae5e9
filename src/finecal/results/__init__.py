"""How a result prints, becomes HTML, Markdown, a dict or a pandas table, and how files are read and written.

Import its modules, not the package. They may import only `inputs`; `lazy` alone reaches for later packages.
"""
