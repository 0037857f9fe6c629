"""The machine: devices, processes, memory, precision, environment, atomic writes, caches."""
