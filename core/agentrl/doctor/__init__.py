"""What ``agentrl doctor`` examines: everything that a run needs, before it starts, in the order in which it is needed.

``examination.examine`` takes a ``Case``, a config and the plugins of this machine, and goes through its sections one
after another. A section is a generator of ``report.Finding`` objects; the result is a ``report.Diagnosis``. Each of the
other modules holds the sections about one subject: versions, plugins, the model, the machine, the config, the learner
and the inference engine, and the agent with its episodes.
"""
