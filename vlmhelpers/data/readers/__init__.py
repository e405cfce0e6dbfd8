"""Readers: each turns a source into a `datasets.Dataset`. They open no image and drop no row.

Columns: the schema's, such as `messages` and `images` (paths; None for one that cannot be used), `row`, `problem` (what
check_dataset rejects the row for) and `note`, see rows.READER_FEATURES; then the source's own, as strings unless a
reader says otherwise. A name that is taken gets an underscore (`row_`). Of more than 200 columns, those that are
read or that most rows have are kept; a row's other fields are JSON in `further_fields`. Image paths start
from image_root, by default the file's own folder, and may not leave it.

Errors, for what is wrong with a whole source: ValueError with a remedy (no rows, a missing column or field, another
encoding), FileNotFoundError, NotADirectoryError where there is no image_root, OSError where it cannot be read.
"""
