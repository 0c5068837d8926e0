"""A package that extends snngraph through its entry points."""
