"""Runs that compute less, and give nearly the same pictures: each way is a frozen value."""
