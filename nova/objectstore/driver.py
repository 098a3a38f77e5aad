"""Which implementation of nova.objectstore.storage keeps the files."""

from nova.objectstore.files import Files
from nova.objectstore.models import objects_path
from nova.objectstore.storage import Storage


def open_files() -> Storage:
    """The files that the flags name; the caller closes them.

    :raises OSError: the directory cannot be made
    """
    return Files(objects_path())
