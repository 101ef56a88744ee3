"""What every training.py shares and no lesson hides in: states to resume from, the curve's plot, the device's memory.

The loop, the loss, the schedule and the order of the data are written out in each stage.
"""
