"""The one exception for what a user can mend.

Belongs here: `UserError`. Does not belong here: errors of the program itself, which stay ordinary
exceptions with their traceback.
"""


class UserError(Exception):
    """Something that the user can mend, told in one sentence: what is wrong, where, what to do."""
