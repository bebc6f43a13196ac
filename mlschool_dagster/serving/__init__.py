"""The inference server, and everything in the path of a request.

Belongs here: the HTTP application, validation derived from the data spec, group commit of captures,
the deployments that say what should serve, and the processes of a server.

Does not belong here: starting and stopping servers (`mlschool_dagster.deployment`), training,
Dagster. The server's process imports none of the training libraries.
"""
