"""What `finecal demo` shows: the data, the network and the run.

Import the modules, not the package; everything of finecal but `cli` may be imported here.
"""
