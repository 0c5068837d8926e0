"""Passes rewrite a :class:`snngraph.SpikingGraph`: the base classes in :mod:`snngraph.passes.base`, each pass in its own file."""
