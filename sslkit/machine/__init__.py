"""What the machine is and does: devices, processes, memory, precision, environment, atomic writes, caches."""
