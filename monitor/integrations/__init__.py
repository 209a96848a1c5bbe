"""Callbacks for loops that belong to a library: import the module named after the library.

    from monitor.integrations.transformers import GradiometerCallback   # Trainer(callbacks=[GradiometerCallback()])
    from monitor.integrations.lightning import GradiometerCallback      # Trainer(callbacks=[GradiometerCallback()])
    from monitor.integrations.accelerate import GradiometerTracker      # Accelerator(log_with=GradiometerTracker())

Nothing here is imported by the rest of the project, and no library is imported before its module is.
"""
