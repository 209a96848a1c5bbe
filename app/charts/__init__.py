"""Signals in, figures or chart descriptions out. No Streamlit in here: every function is tested by its output."""
