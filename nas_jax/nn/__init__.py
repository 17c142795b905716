"""Neural-network building blocks that know nothing of searches."""
