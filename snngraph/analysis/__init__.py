"""Facts about a graph that passes need; none of them changes it."""
