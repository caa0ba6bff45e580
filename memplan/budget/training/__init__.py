"""What a training step holds, moment by moment: a step is written down as the allocations and frees that its operators
make, and the peak is read off it.
"""
