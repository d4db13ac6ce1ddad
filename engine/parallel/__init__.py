"""One world on several devices: which exchange of keys, values and queries is cheapest, by formula (planner.py)."""
