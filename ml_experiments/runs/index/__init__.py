"""The index of the runs below one folder: a copy in SQLite of what lists are filtered by.

The run folders are the truth. The index is in the user's cache folder, is brought up to date
whenever it is read, and may be deleted at any time.
"""
