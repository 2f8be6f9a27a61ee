"""Token by token: what a model says of each token of a pair's completions, before and after they first differ."""
