"""A policy that is slower than its environment, run by staggered workers: an action every tick."""
