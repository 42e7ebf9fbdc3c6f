"""Speed and size: latency here, on a phone, and what a network computes."""
