"""Pages of history: the pool, the policy that keeps them, the views that read them."""
