"""What starts runs: jobs, schedules, sensors.

Belongs here: which assets form a job, when a run is requested and with what, and the simulated
outside world as jobs. Does not belong here: what an asset is.
"""
