"""Where a command's work runs: in this process, or on the machines of a Ray cluster.

``jobs`` says what is done with images, ``ray_cluster`` connects to a cluster, ``ray_stream`` runs a job on it.
"""
