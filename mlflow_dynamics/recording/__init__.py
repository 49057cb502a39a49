"""Recording (torch): which layers, the reduction, hooks and buffers, where epochs begin and end."""
