"""agentrl on a Ray cluster: the scheduler ``ray``, and the executor ``ray`` for agents on its nodes.

``scheduler`` connects and cleans up, ``cluster`` says what the cluster has, ``hosts`` places actors and asks them,
``actor`` is what runs in each, ``sharing`` is how a host proves that it sees a folder of the run, ``logs`` brings home
what it prints. ``executor`` runs episodes in processes that ``carrying`` starts on nodes, where ``workers`` is.
"""
