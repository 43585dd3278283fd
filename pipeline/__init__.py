"""The verifier: records each side in a process of its own, compares without either framework."""
