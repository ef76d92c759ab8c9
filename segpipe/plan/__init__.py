"""From a fingerprint to every decision, each with its reason."""
