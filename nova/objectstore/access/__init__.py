"""Who may do what in the object store: bucket policies, access control lists and the switches that limit both.

All of it is pure: documents are read and questions answered without input or output.  nova.objectstore.operations.base
asks :func:`nova.objectstore.access.decision.decide` for each request.
"""
