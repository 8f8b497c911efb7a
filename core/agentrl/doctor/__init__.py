"""What `agentrl doctor` looks at, one module a subject.

``examination.examine`` goes through the sections that ``checks`` lists, each a generator of ``findings`` about a
``case``, and gives a ``Diagnosis``.
"""
