"""Reads what other tools wrote: TensorBoard, Hugging Face, W&B, Trackio, CSV, JSON lines, text logs.

    file or folder -> Source (by content) -> rows -> steps and lanes -> names -> run directories

A source says what it can; what is guessed (steps, names, restarts) is guessed from the rows and always said.
"""

from monitor.importers.find import find_sources as find_sources
from monitor.importers.take import Taken as Taken
from monitor.importers.take import import_path as import_path

__all__ = ["Taken", "find_sources", "import_path"]
