"""From a model to a graph: capture, and the adapters that know the neurons of a library."""
