"""How a result shows itself and is kept: text, Markdown, HTML, dicts, pandas, JSON and files.

Import the modules, not the package; of finecal, only `inputs` may be imported here.
"""
