"""Agents that act with FoX models: realtime/ (an environment that does not wait), hanabi/."""
