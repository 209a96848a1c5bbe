"""A report to keep or to send: one HTML file, Markdown, or the doctor's JSON.

run or foreign log -> Content (plain values and curves) -> page / words -> files
"""
