"""What a model is measured by: ranks, shares with intervals, the geometry of the space, charts."""
