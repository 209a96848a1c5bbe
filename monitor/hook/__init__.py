"""Inside the training process: what is measured, when, and how it leaves the device."""
