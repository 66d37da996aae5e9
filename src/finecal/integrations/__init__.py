"""finecal within other training and data libraries: one public module per library, each with an extra of its own.

Import the module of your library, such as ``finecal.integrations.lightning``. These modules may import packages up to
`models`, and `plots`.
"""
