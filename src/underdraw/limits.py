"""Numbers that several rooms are limited by; importing this imports nothing."""

LARGEST_FACTOR = 1e4
"""Of what predictions, residuals, features or attention are multiplied by: beyond it half precision
overflows, and float32 holds nothing of what they are added to."""
FEWEST_CALLS = 10
"""Of the UNet in a run: in shorter ones no call is like the one before it, so that none can use
what another has computed."""
