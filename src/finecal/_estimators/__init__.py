"""Every way to find gamma: a file holds one estimator or two, what several share, or the choice between them."""
