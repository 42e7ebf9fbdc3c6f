"""That two ways to compute the same thing agree, and which layer is the first that does not."""
