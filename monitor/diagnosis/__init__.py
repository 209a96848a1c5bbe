"""Signals in, findings out: rules over signals, causes ranked, remedies named. No torch."""
